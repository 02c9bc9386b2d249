"""A trained network whose file misses the target is cut further and trained for a while."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice

from torch import nn

from prunekit.core.ratio import PairedRatio
from prunekit.core.run_folder import MENDING
from prunekit.networks.slimming import slim_further
from prunekit.pipeline.delivery import Delivered, deliver
from prunekit.pipeline.job import fine_tune_lr, train_config
from prunekit.pipeline.landing import FARTHEST_AIM, Attempt, Landing, aim, meets
from prunekit.pipeline.methods import Pruned
from prunekit.pipeline.planner import Planner
from prunekit.pipeline.run import Run
from prunekit.pipeline.scoring import slim_scores
from prunekit.support.errors import AnswerNoError, OpenAnswerError
from prunekit.support.processes import on_rank_zero
from prunekit.support.progress import say
from prunekit.support.stopwatch import stages
from prunekit.train.norms import BATCHES, renew_norms

MOST = 3
"""Cuts after the training, at most."""
SHARE = 0.15
"""Of the epochs of a run: what is trained after a cut, one epoch at least."""


def deliver_mended(
    run: Run, planner: Planner, pruned: Pruned, target: float
) -> tuple[Pruned, Delivered | None]:
    """The network in the run folder and what its file takes; cut further where that misses.

    What is delivered is known to rank 0 only.
    """
    deliveries: list[Delivered] = []

    def measure() -> PairedRatio:
        with stages.stage("final measurement"):
            deliveries.append(deliver(run, pruned, target))
        return run.comparison.against_limit(deliveries[-1].timed, target)

    for number in range(1, MOST + 1):
        landing = on_rank_zero(partial(_kept, run, number))
        if landing is None:
            measured = on_rank_zero(measure)
            if not _can_mend(run, pruned, measured, target):
                break
            land = partial(_land, run, planner, pruned, measured, target, number)
            landing = on_rank_zero(land)
            if landing is None:
                break
        pruned = _cut_and_train(run, pruned, landing, number)
    else:
        on_rank_zero(measure)
    return pruned, deliveries[-1] if deliveries else None


def _kept(run: Run, number: int) -> Landing | None:
    """What an interrupted run has cut to."""
    path = run.folder / MENDING.format(number)
    return Landing.load(path) if path.is_file() else None


def _can_mend(run: Run, pruned: Pruned, measured: PairedRatio, target: float) -> bool:
    """Whether the target is missed, or may be, by a trained network and a usable measurement."""
    recipe = run.job.recipe
    if pruned.land_from is not None or run.job.data is None or not recipe.epochs:
        return False
    if meets(measured, target, recipe.confidence):
        return False
    noise = measured.estimate.scale
    return aim(noise, recipe.confidence) > FARTHEST_AIM


def _land(
    run: Run, planner: Planner, pruned: Pruned, measured: PairedRatio, target: float, number: int
) -> Landing | None:
    """A narrower plan by the trained network's own scores, which was measured; None without any."""
    before = pruned.landing
    plan = before.allocation.plan
    say(
        f"the trained network takes {measured.ratio / target:.1%} of the limit, which is met with "
        f"a probability of {measured.probability_below(target):.0%}; cutting further"
    )
    with stages.stage("landing"):
        scores = slim_scores(run.job, run.criterion, pruned.small, plan)
    predicted = before.allocation.ratio
    known = Attempt(predicted, predicted, measured.ratio, measured.low, measured.high, plan.widths)
    try:
        with stages.stage("landing"):
            landing = planner.land(scores, plan.widths, target, (known,))
    except (AnswerNoError, OpenAnswerError) as error:
        say(f"note: it cannot be cut further: {error}")
        return None
    if landing.allocation.plan.widths == plan.widths:
        return None
    landing = replace(landing, attempts=(*before.attempts, *landing.attempts[1:]))
    landing.save(run.folder / MENDING.format(number))
    return landing


def _cut_and_train(run: Run, pruned: Pruned, landing: Landing, number: int) -> Pruned:
    """The trained network without what ``landing`` removes, its norms renewed, trained a little."""
    job, recipe = run.job, run.job.recipe
    small = slim_further(
        pruned.small, job.graph, pruned.landing.allocation.plan, landing.allocation.plan
    )
    _renew(run, small)
    epochs = max(1, round(SHARE * recipe.epochs))
    config = train_config(recipe, epochs, fine_tune_lr(recipe))
    result = run.trainer.fit(small, f"mending-{number}", config, teacher=run.teacher)
    share = job.graph.macs(landing.allocation.widths) / job.graph.macs({})
    trained = replace(
        pruned.trained,
        mending=(*pruned.trained.mending, result),
        work=pruned.trained.work + share * epochs,
    )
    return replace(pruned, small=small, landing=landing, trained=trained)


def _renew(run: Run, small: nn.Module) -> None:
    data, recipe = run.job.data, run.job.recipe
    if data is not None:
        batches = data.train_batches(recipe.batch_size, recipe.seed)
        renew_norms(small, (inputs for inputs, _ in islice(batches, BATCHES)))
