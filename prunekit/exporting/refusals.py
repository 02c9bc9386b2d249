"""What an exporter says while it works: kept from the screen, and in a file where it refuses."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator

from prunekit.support.errors import ModelError

_LOGGERS = ("torch", "onnx", "onnxscript", "onnx_ir")


class ExportError(ModelError):
    """An exporter's refusal; ``details`` are all that it said."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def with_details(error: ExportError) -> ModelError:
    """The refusal in one line that names a file, where the rest of it was written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="prunekit-export-", suffix=".log", delete=False
        ) as file:
            file.write(error.details)
    except OSError:  # no place for it; the line alone has to do
        return ModelError(str(error))
    return ModelError(f"{error}; all of it is in {file.name}")


@contextlib.contextmanager
def collected(text: io.StringIO) -> Iterator[None]:
    """Put into ``text`` what the block and the exporter's loggers would print."""
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    loggers = [each for each in known if each.name.partition(".")[0] in _LOGGERS]
    screens = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    streams = [
        (handler, handler.stream)
        for each in loggers
        for handler in each.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in screens
    ]
    levels = [(each, each.level) for each in loggers if each.name in (*_LOGGERS, "torch.onnx")]
    for each, _ in levels:
        if each.name != "torch":
            each.setLevel(logging.ERROR)
    for handler, _ in streams:
        handler.setStream(text)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield
    finally:
        for handler, stream in streams:
            handler.setStream(stream)
        for each, level in levels:
            each.setLevel(level)
