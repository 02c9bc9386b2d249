"""HALP: the dense network is pruned bit by bit while it trains, then lands and is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from prunekit.allocation import Allocation
from prunekit.core.scores import Scores
from prunekit.criteria import Criterion
from prunekit.pipeline.job import Job, fine_tune_lr, train_config
from prunekit.pipeline.methods.base import (
    Pruned,
    check_changed,
    check_trains,
    share_to_train_towards,
)
from prunekit.pipeline.methods.from_scores import Gone, land_and_fine_tune
from prunekit.pipeline.planner import Planner
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.run import Run
from prunekit.pipeline.scoring import check_gradients
from prunekit.pruning import Halp
from prunekit.pruning.halp import Schedule
from prunekit.support.processes import on_rank_zero

ROOM = 1.1
"""The last plan of the training is wider than the one that should land, by this factor in cost."""


@dataclass(frozen=True)
class HalpMethod:
    """Prunes a masked network in the first third of the epochs; see `prunekit.pruning.Halp`."""

    name: ClassVar[str] = "halp"

    def check(self, recipe: Recipe) -> None:
        """It needs epochs to prune in."""
        check_trains(recipe, self.name)

    def check_unused(self, recipe: Recipe) -> None:
        """The number of pruning steps."""
        check_changed(recipe, "pruning_steps", self.name)

    def check_job(self, job: Job, criterion: Criterion) -> None:
        """Training has to give the criterion its gradients."""
        check_gradients(job, criterion)

    def stages(self, recipe: Recipe) -> list[str]:
        """It lands between its two trainings."""
        dense = ["dense training"] * recipe.dense_training
        trained = [*dense, "pruning", "landing", "fine tuning", "final measurement"]
        return ["tracing", "exporting", "profiling", *trained]

    def prune(self, run: Run, planner: Planner, target: float) -> Pruned:
        """Prune while training, land by the last scores within what is left, and fine-tune."""
        recipe = run.job.recipe
        epochs = max(1, recipe.epochs // 3)
        rule = _rule(run, planner, target, epochs)
        config = train_config(
            *(recipe, epochs, fine_tune_lr(recipe)),
            schedule="constant",
            warmup_epochs=0.0,
            ema=0.0,
        )
        pruning = run.trainer.fit(run.job.module, "pruning", config, rule=rule, teacher=run.teacher)
        scores, widths = on_rank_zero(rule.scores), rule.plan.widths
        gone = Gone(on_rank_zero(rule.known_scores), partial(rule.revive_, run.job.module))
        left = recipe.epochs - epochs
        landed = land_and_fine_tune(run, planner, target, scores, widths, left, gone)
        # masked training counts as dense, which it is
        trained = replace(landed.trained, pruning=pruning, work=epochs + landed.trained.work)
        dense = on_rank_zero(rule.dense_scores)
        return replace(landed, scores=dense, trained=trained, land_from=None)


def _rule(run: Run, planner: Planner, target: float, epochs: int) -> Halp:
    """What prunes during ``epochs`` of training."""
    steps = epochs * run.job.steps_per_epoch
    times = min(run.job.recipe.pruning_steps, steps)

    def solve(
        scores: Scores, fraction: float, at_most: dict[str, int], at_least: dict[str, int]
    ) -> Allocation:
        # further limits are for the landing: here they would hold in full from the start
        return planner.nearest(scores, fraction, at_most, at_least=at_least, limited=False)

    # The table is corrected by a measurement near the target, and what is left of its error has
    # room: the landing can prune more, but not take back.
    share = share_to_train_towards(run, planner, target)
    schedule = Schedule(times, steps // times)
    return Halp(run.job.graph, run.criterion, solve, share, schedule, ROOM * share)
