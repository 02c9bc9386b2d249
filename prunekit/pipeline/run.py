"""What all stages of one ``prune`` share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prunekit.core.run_folder import RunFolder
from prunekit.criteria import Criterion
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.job import Job
from prunekit.pipeline.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """The job, and what measures, trains and keeps files for it."""

    job: Job
    criterion: Criterion
    folder: RunFolder
    comparison: DenseComparison
    trainer: Trainer
    teacher: nn.Module | None = None
    """The dense network as it was before pruning, where that is distilled."""
