"""From scores to a slim network: the end that one-shot pruning and HALP have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from prunekit.core.run_folder import LANDING
from prunekit.core.scores import Scores
from prunekit.pipeline.job import fine_tune_lr, train_config
from prunekit.pipeline.landing import LandFrom, Landing, confirm, used_up
from prunekit.pipeline.methods.base import Pruned
from prunekit.pipeline.planner import Planner
from prunekit.pipeline.repairing import slimmed, trained
from prunekit.pipeline.run import Run
from prunekit.pipeline.trainer import Trained
from prunekit.support.errors import InfeasibleError, OpenAnswerError
from prunekit.support.processes import on_rank_zero
from prunekit.support.progress import say
from prunekit.support.stopwatch import stages
from prunekit.train import FitResult


@dataclass(frozen=True)
class Gone:
    """Channels that a training has removed, and how they come back to the dense network."""

    scores: Scores
    """Of all channels: of those that are gone, from when they went."""
    revive_: Callable[[], None]


def land_and_fine_tune(
    run: Run,
    planner: Planner,
    target: float,
    scores: Scores,
    at_most: dict[str, int] | None,
    epochs: int,
    gone: Gone | None = None,
) -> Pruned:
    """Land by ``scores`` within the widths ``at_most``, slim, and train for ``epochs``.

    Where that leaves much of the target over, channels that are ``gone`` come back.
    """
    job = run.job
    land_from = partial(planner.land, scores, at_most, target)
    landing = on_rank_zero(lambda: _landing(run, planner, land_from, target, gone))
    if gone is not None:
        gone.revive_()
    small, repair = slimmed(run, landing.allocation.plan)
    fine_tuning = _fine_tune(run, small, epochs)
    share = job.graph.macs(landing.allocation.widths) / job.graph.macs({})
    return Pruned(
        small,
        landing,
        scores,
        Trained(fine_tuning=fine_tuning, work=share * epochs),
        repair if fine_tuning is None else trained(repair, fine_tuning.score, fine_tuning.seconds),
        land_from if fine_tuning is None else None,
    )


def _landing(
    run: Run, planner: Planner, land_from: LandFrom, target: float, gone: Gone | None
) -> Landing:
    """The measured landing, confirmed where training follows, or the one of an interrupted run."""
    measure = partial(run.comparison.confirmed_ratio, target=target)
    sure = run.job.recipe.confidence

    def compute() -> Landing:
        landing = land_from(())
        if run.job.data is None or not run.job.recipe.epochs:
            return landing
        landing = confirm(landing, measure, land_from, target, sure)
        if gone is None or landing.chosen.ratio >= used_up(target, landing.chosen.noise):
            return landing
        say(f"it takes {landing.chosen.ratio / target:.1%} of the limit; channels come back")
        least = landing.allocation.widths
        widen = partial(planner.land, gone.scores, None, target, at_least=least)
        known = replace(landing.chosen, asked=landing.chosen.predicted * (1 + 1e-9))
        try:
            wider = confirm(widen((known,)), measure, widen, target, sure)
        except (InfeasibleError, OpenAnswerError):
            return landing
        if wider.chosen.ratio <= landing.chosen.ratio:
            return landing
        return replace(wider, attempts=(*landing.attempts, *wider.attempts[1:]))

    with stages.stage("landing"):
        return run.folder.once(LANDING, Landing, compute)


def _fine_tune(run: Run, small: nn.Module, epochs: int) -> FitResult | None:
    """Train the slim network, if there is data and an epoch left."""
    if run.job.data is None or epochs < 1:
        small.eval()
        return None
    recipe = run.job.recipe
    config = train_config(recipe, epochs, fine_tune_lr(recipe))
    return run.trainer.fit(small, "fine-tuning", config, teacher=run.teacher)
