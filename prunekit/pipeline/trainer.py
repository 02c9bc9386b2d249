"""Trainings of one run: checkpoints in its work folder, lines in its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from torch import nn

from prunekit.core.run_folder import BOARD, RunFolder
from prunekit.pipeline.tensorboard import Board
from prunekit.support.errors import UsageError
from prunekit.support.processes import rank
from prunekit.support.stopwatch import stages
from prunekit.train import Data, FitResult, Rule, TrainConfig, fit
from prunekit.train.rule import Row


@dataclass(frozen=True)
class Trained:
    """What training there was, stage by stage."""

    dense: FitResult | None = None
    pruning: FitResult | None = None
    fine_tuning: FitResult | None = None
    mending: tuple[FitResult, ...] = ()
    """After cuts that a miss of the target made necessary."""
    work: float = 0.0
    """After the dense training: in epochs of the dense network, without a teacher's share."""

    @property
    def dense_seconds(self) -> float:
        """Of the dense training."""
        return 0.0 if self.dense is None else self.dense.seconds

    @property
    def seconds(self) -> float:
        """Of all of it."""
        stages = (self.dense, self.pruning, self.fine_tuning, *self.mending)
        return sum((stage.seconds for stage in stages if stage is not None), 0.0)


@dataclass(frozen=True)
class Trainer:
    """What all trainings of a run share."""

    data: Data | None
    folder: RunFolder
    resume: bool
    board: Board | None = None

    def fit(
        self,
        model: nn.Module,
        stage: str,
        config: TrainConfig,
        *,
        rule: Rule | None = None,
        teacher: nn.Module | None = None,
    ) -> FitResult:
        """Train with checkpoints in the run's work folder."""
        if self.data is None:
            raise UsageError("training needs data; add --data")
        title = stage.replace("-", " ")
        with stages.stage("pruning" if stage == "iee" else title.rstrip(" 123")):
            return fit(
                *(model, self.data, config),
                folder=self.folder.work / stage,
                resume=self.resume,
                log=self.log,
                title=title,
                rule=rule,
                teacher=teacher,
            )

    def log(self, row: Row) -> None:
        """One line of ``log.jsonl``, and of the board where there is one."""
        self.folder.log(row)
        if self.board is not None:
            self.board.log(row)


@contextmanager
def open_trainer(
    data: Data | None, folder: RunFolder, *, resume: bool, tensorboard: bool
) -> Iterator[Trainer]:
    """The run's trainer, with a board on rank 0 if that is wanted."""
    if not tensorboard or rank() > 0:
        yield Trainer(data, folder, resume)
        return
    with closing(Board(folder / BOARD)) as board:
        yield Trainer(data, folder, resume, board)
