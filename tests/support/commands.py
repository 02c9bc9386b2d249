"""What tests of commands share: a file with networks, its flags, what a command says."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

FACTORY = textwrap.dedent(
    """
    import torch
    from torch import nn

    def tiny(num_classes=10, in_channels=1):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
        )

    def wide(num_classes=10):
        return nn.Sequential(nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))

    def medium(num_classes=10, in_channels=1):
        return nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
        )

    def raises():
        raise ValueError("boom")

    def five():
        return 5

    number = 3
    """
)
SHAPE = ("--input", "1x1x8x8")
ON_FAKE = (*SHAPE, "--target", "fake")
MADE = {"net.py", "table.json", "run", "__pycache__"}

Says = Callable[..., tuple[int, str, str]]

COMMANDS = ("targets", "inspect", "profile", "prune", "export", "bench", "check", "report", "table")
TABLE = ("--table", "table.json")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def onnx_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (item.name for item in session.get_inputs())
    return np.asarray(session.run(None, {name: images})[0])


SWEEP = ("sweep", "net.py:tiny", *ON_FAKE, "--table", "table.json")
