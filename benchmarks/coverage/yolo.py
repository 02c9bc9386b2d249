"""Ultralytics' detectors built from their yaml with random weights; never bundled, tests only.

    pip install --no-deps ultralytics opencv-python-headless

is all that building and running a network needs beside prunekit's own requirements.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile

from torch import nn


def build(name: str) -> nn.Module:
    """The detector ``name`` (``yolov8n``, ``yolo11n``, ...) as a user's script holds it.

    In evaluation mode it returns the decoded boxes and, beside them, the raw ones with the
    feature maps they came from: the widths of those maps are then the model's outputs.
    """
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # not the user's home
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    with contextlib.redirect_stdout(io.StringIO()):
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(f"{name}.yaml", verbose=False)
