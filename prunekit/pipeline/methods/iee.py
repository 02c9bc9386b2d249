"""IEE: a slim network trains while its structure changes; its last change is the landing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from prunekit.core.budget import Budget
from prunekit.core.plan import ChannelPlan
from prunekit.core.run_folder import LANDING
from prunekit.criteria import Criterion
from prunekit.pipeline.job import Job, fine_tune_lr, train_config
from prunekit.pipeline.landing import Landing, Smallest, Solve, confirm, land
from prunekit.pipeline.methods.base import Pruned, check_trains, share_to_train_towards
from prunekit.pipeline.planner import UNSCORED, Planner
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.run import Run
from prunekit.pipeline.scoring import check_gradients
from prunekit.pipeline.trainer import Trained
from prunekit.pruning import IEESchedule
from prunekit.pruning.iee import IEE, Update
from prunekit.support.errors import UsageError
from prunekit.support.processes import on_rank_zero
from prunekit.support.stopwatch import stages


@dataclass(frozen=True)
class IeeMethod:
    """Exploits and explores over all epochs; see `prunekit.IEE`."""

    name: ClassVar[str] = "iee"

    def check(self, recipe: Recipe) -> None:
        """It trains several networks in turn, and removes whole heads under one budget."""
        check_trains(recipe, self.name)
        if recipe.ema:
            raise UsageError(
                "--ema averages one network, and method iee trains several in turn; leave it out"
            )
        if recipe.distill and not recipe.dense_is_trained:
            raise UsageError(
                "--distill needs a trained dense network, which --from-scratch with method iee "
                "never makes; add --dense-epochs, or leave --distill out"
            )
        if recipe.heads == "width":
            raise UsageError(
                "method iee removes whole heads only; leave --heads out, or use another --method"
            )
        if recipe.limit:
            raise UsageError(
                "--limit is for methods oneshot and halp; leave it out, or use another"
            )

    def check_unused(self, recipe: Recipe) -> None:
        """Its options."""
        if recipe.iee:
            raise UsageError("--iee has the options of method iee; add --method iee")

    def check_job(self, job: Job, criterion: Criterion) -> None:
        """Its stages fit into the training, which has to give the criterion its gradients."""
        _schedule(job)
        check_gradients(job, criterion)

    def stages(self, recipe: Recipe) -> list[str]:
        """It lands in the middle of its training."""
        dense = ["dense training"] * recipe.dense_training
        return ["tracing", "exporting", "profiling", *dense, "pruning", "final measurement"]

    def prune(self, run: Run, planner: Planner, target: float) -> Pruned:
        """Train towards the share of the latency that should measure as ``target``."""
        job, recipe = run.job, run.job.recipe
        share = share_to_train_towards(run, planner, target)
        rule = IEE(
            *(job.module, job.graph, planner.table, Budget.share(share), run.criterion),
            _schedule(job),
            solver=planner.solver,
            granularity=recipe.granularity,
            settle=partial(_last_plan, run, target),
        )
        lr = fine_tune_lr(recipe) if recipe.dense_is_trained else recipe.lr
        config = train_config(recipe, recipe.epochs, lr)
        result = run.trainer.fit(job.module, "iee", config, rule=rule, teacher=run.teacher)
        landing = on_rank_zero(lambda: _LastLanding.load(run.folder / LANDING))
        # the landing happens between two steps and is no training
        training = replace(result, seconds=max(0.0, result.seconds - landing.seconds))
        trained = Trained(pruning=training, work=rule.work / job.steps_per_epoch)
        return Pruned(rule.slim, landing, UNSCORED, trained)


@dataclass(frozen=True)
class _LastLanding(Landing):
    """The landing in the middle of a training."""

    seconds: float = 0.0
    """What it took of the training's time."""


def _schedule(job: Job) -> IEESchedule:
    """The course of the training; options that cannot be used are named."""
    recipe = job.recipe
    options = {"start": "dense" if recipe.dense_is_trained else "uniform"}
    given = {**options, "seed": recipe.seed, **recipe.iee}
    return IEESchedule.parse(recipe.epochs * job.steps_per_epoch, given)


def _last_plan(run: Run, target: float, update: Update, smallest: Update) -> ChannelPlan:
    """What the structure ends as: the plan that lands."""
    landing = on_rank_zero(lambda: _landing(run, target, update, lambda: smallest(0.0)))
    return landing.allocation.plan


def _landing(run: Run, target: float, update: Solve, smallest: Smallest) -> _LastLanding:
    """The measured landing, confirmed, or the one of a run whose last epoch was cut."""

    def compute() -> _LastLanding:
        measure = partial(run.comparison.landing_ratio, target=target)
        longer = partial(run.comparison.confirmed_ratio, target=target)
        sure = run.job.recipe.confidence
        land_from = partial(land, update, smallest, measure, target, confidence=sure)
        landing = confirm(land_from(()), longer, land_from, target, sure)
        return _LastLanding(landing.allocation, landing.attempts)

    began = time.perf_counter()
    with stages.stage("landing"):
        landing = run.folder.once(LANDING, _LastLanding, compute)
    # the time of one that was kept went with the epoch that was cut
    landing = replace(landing, seconds=time.perf_counter() - began)
    landing.save(run.folder / LANDING)
    return landing
