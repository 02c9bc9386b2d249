"""What a method is, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from prunekit.core.run_folder import CORRECTION
from prunekit.core.scores import Scores
from prunekit.criteria import Criterion
from prunekit.pipeline.job import Job
from prunekit.pipeline.landing import LandFrom, Landing
from prunekit.pipeline.planner import Planner, Share
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.run import Run
from prunekit.pipeline.trainer import Trained
from prunekit.report.schema import RepairPart
from prunekit.support.errors import UsageError
from prunekit.support.processes import on_rank_zero


@dataclass(frozen=True)
class Pruned:
    """The slim network as it will be deployed, and how it came about."""

    small: nn.Module
    landing: Landing
    scores: Scores
    """Of the dense network, by the plan's criterion; empty where there was no single set."""
    trained: Trained
    repair: RepairPart | None = None
    land_from: LandFrom | None = None
    """How to land again, where nothing was trained since."""


class Method(Protocol):
    """A way from a dense network to a slim one whose latency was measured."""

    @property
    def name(self) -> str:
        """As in ``--method``."""

    def check(self, recipe: Recipe) -> None:
        """Raise UsageError for settings that this method cannot work with."""

    def check_unused(self, recipe: Recipe) -> None:
        """Raise UsageError for settings of this method in a recipe for another."""

    def check_job(self, job: Job, criterion: Criterion) -> None:
        """Raise UsageError for a network or data that this method cannot work with."""

    def stages(self, recipe: Recipe) -> list[str]:
        """What a run goes through, in order."""
        ...

    def prune(self, run: Run, planner: Planner, target: float) -> Pruned:
        """The slim network within ``target``, a share of the dense latency, trained to the end."""
        ...


def share_to_train_towards(run: Run, planner: Planner, target: float) -> float:
    """The predicted share of the dense latency at which ``target`` should measure.

    Measured once; a resumed run keeps to it.
    """
    correction = on_rank_zero(
        lambda: run.folder.once(CORRECTION, Share, lambda: Share(planner.corrected(target)))
    )
    return correction.ratio


def check_trains(recipe: Recipe, method: str) -> None:
    """Raise UsageError where there is no training for ``method`` to prune in."""
    recipe.needs_data((f"--method {method}", True))
    if recipe.epochs < 2:
        raise UsageError(
            f"method {method} prunes while it trains; give --epochs 2 or more, or --method oneshot"
        )


def check_changed(recipe: Recipe, name: str, method: str) -> None:
    """Raise UsageError where setting ``name``, which only ``method`` reads, was given."""
    if recipe.changed(name):
        raise UsageError(
            f"--{name.replace('_', '-')} is for method {method}, and this is "
            f"{recipe.resolved_method()}; leave it out, or add --method {method}"
        )
