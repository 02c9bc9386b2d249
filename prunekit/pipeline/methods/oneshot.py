"""One-shot: the dense network's scores decide, and what is left is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunekit.criteria import Criterion
from prunekit.pipeline.job import Job
from prunekit.pipeline.methods.base import Pruned, check_changed
from prunekit.pipeline.methods.from_scores import land_and_fine_tune
from prunekit.pipeline.planner import Planner
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.run import Run
from prunekit.pipeline.scoring import dense_scores
from prunekit.support.errors import UsageError
from prunekit.support.processes import on_rank_zero


@dataclass(frozen=True)
class OneShot:
    """Scores the dense network, lands once, and trains for all epochs there are."""

    name: ClassVar[str] = "oneshot"

    def check(self, recipe: Recipe) -> None:
        """It works with all settings."""

    def check_unused(self, recipe: Recipe) -> None:
        """Whole blocks go in one cut only, and only here scores come from a few batches."""
        if recipe.depth:
            raise UsageError(
                f"--depth is for method oneshot, and this is {recipe.resolved_method()}; "
                "add --method oneshot, or leave --depth out"
            )
        check_changed(recipe, "score_batches", self.name)
        check_changed(recipe, "repair", self.name)

    def check_job(self, job: Job, criterion: Criterion) -> None:
        """It needs no gradients while training."""

    def stages(self, recipe: Recipe) -> list[str]:
        """It lands before any training of its own."""
        dense = ["dense training"] * recipe.dense_training
        tuning = ["fine tuning"] * (recipe.labelled and recipe.epochs > 0)
        repair = ["repair"] * (recipe.resolved_repair() != "none")
        first = ["tracing", "exporting", "profiling"]
        return [*first, *dense, "landing", *repair, *tuning, "final measurement"]

    def prune(self, run: Run, planner: Planner, target: float) -> Pruned:
        """One landing by the scores of the dense network."""
        scores = on_rank_zero(lambda: dense_scores(run.job, run.criterion))
        return land_and_fine_tune(run, planner, target, scores, None, run.job.recipe.epochs)
