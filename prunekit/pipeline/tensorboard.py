"""The log as TensorBoard scalars; the package is an extra, imported when a board is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.support.errors import FileError, UsageError, first_line
from prunekit.train.rule import Row

SCALARS = {"loss": "train/loss", "lr": "train/lr", "accuracy": "val/accuracy", "score": "val/score"}
"""Of an epoch, by the log's names."""

STRUCTURE = ("predicted_ratio", "iou", "survival", "relative_flops")
"""Of an update of the structure; its widths lie beside them, one scalar per group."""


class Board:
    """Event files in ``path``: updates there, epochs in a folder per stage, as steps start anew.

    Raises UsageError without the tensorboard package. A value logged again at the same step, as
    after a resume, is one more event with that step, and TensorBoard draws the last.
    """

    def __init__(self, path: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            reason = first_line(error)
            raise UsageError(
                f"--tensorboard needs the tensorboard package ({reason}); "
                "pip install prunekit[tensorboard]"
            ) from error
        self.path = path
        self._make: Any = SummaryWriter
        self._writers: dict[Path, Any] = {}

    def log(self, row: Row) -> None:
        """Write a row of ``log.jsonl``; what is missing or None in it is left out."""
        if row.get("stage") == "update":
            folder = self.path
            scalars = {f"structure/{name}": row.get(name) for name in STRUCTURE}
            widths = row.get("widths")
            if isinstance(widths, dict):
                scalars |= {f"widths/{group}": width for group, width in widths.items()}
        else:
            folder = self.path / str(row["stage"]).replace(" ", "-")
            scalars = {tag: row.get(name) for name, tag in SCALARS.items()}
        try:
            writer = self._writers.get(folder)
            if writer is None:
                writer = self._writers[folder] = self._make(str(folder))
            for tag, value in scalars.items():
                if value is not None:
                    writer.add_scalar(tag, value, row["step"])
            writer.flush()
        except OSError as error:
            raise FileError(f"cannot write {folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
