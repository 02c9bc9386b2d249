"""Trainings of one run: checkpoints in its work folder, lines in its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.core.run_folder import RunFolder
from prunekit.pipeline.tensorboard import Board
from prunekit.support.errors import UsageError
from prunekit.train import Data, FitResult, TrainConfig, fit


@dataclass(frozen=True)
class Trainer:
    """What all trainings of a run share."""

    data: Data | None
    folder: RunFolder
    resume: bool
    board: Board | None

    def fit(self, model: nn.Module, stage: str, config: TrainConfig, **more: Any) -> FitResult:
        """Train with checkpoints in the run's work folder."""
        if self.data is None:
            raise UsageError("training needs data; add --data")
        return fit(
            model,
            self.data,
            config,
            folder=self.folder.work / stage,
            resume=self.resume,
            log=self.log,
            title=stage.replace("-", " "),
            **more,
        )

    def log(self, row: dict[str, Any]) -> None:
        """One line of ``log.jsonl``, and of the board where there is one."""
        self.folder.log(row)
        if self.board is not None:
            self.board.log(row)
