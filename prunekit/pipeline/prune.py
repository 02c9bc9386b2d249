"""``prune``: the main job, end to end; every stage can be taken up again where it stopped."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.allocation import Allocation
from prunekit.allocation.solvers import Allocator
from prunekit.core.artifact import Artifact
from prunekit.core.budget import Budget
from prunekit.core.plan import ChannelPlan
from prunekit.core.run_folder import (
    BOARD,
    CORRECTION,
    DENSE,
    DENSE_WEIGHTS,
    JOURNAL,
    LANDING,
    ONNX,
    PAGE,
    TABLE,
    TARGET,
    RunFolder,
)
from prunekit.core.scores import Scores
from prunekit.core.target import usable_cores
from prunekit.criteria import Criterion
from prunekit.exporting import live_artifact
from prunekit.exporting.precision import PRECISIONS
from prunekit.latency import LatencyTable
from prunekit.networks.saved import save_weights
from prunekit.networks.slimming import slim
from prunekit.pipeline.against_dense import Stopwatch
from prunekit.pipeline.delivery import Delivery
from prunekit.pipeline.job import Job, fine_tune_lr, train_config
from prunekit.pipeline.landing import Landing, Measure, confirm, land
from prunekit.pipeline.output_folder import open_folder
from prunekit.pipeline.planner import UNSCORED, Planner, Share
from prunekit.pipeline.report_parts import file_accuracy, make_report
from prunekit.pipeline.scoring import check_gradients, criterion_of, dense_scores
from prunekit.pipeline.table import check_prunable, check_table, load_table, make_table
from prunekit.pipeline.tensorboard import Board
from prunekit.pipeline.trainer import Trainer
from prunekit.profiling import HarvestPlan
from prunekit.pruning import Halp, IEESchedule
from prunekit.pruning.halp import Schedule
from prunekit.pruning.iee import IEE, Update
from prunekit.report import Report, to_html
from prunekit.support.errors import UsageError
from prunekit.support.files import write_text
from prunekit.support.processes import on_rank_zero, rank
from prunekit.support.progress import say
from prunekit.support.registry import allocators
from prunekit.train import FitResult, TrainConfig, loader


@dataclass
class Trained:
    """What training there was: results by stage, for the cost account."""

    dense: FitResult | None = None
    pruning: FitResult | None = None
    fine_tuning: FitResult | None = None
    work: float | None = None
    """Of pruning, in epochs of the dense network, where not all of it ran dense."""


def prune(job: Job, output: Path, *, overwrite: bool = False, resume: bool = False) -> Report:
    """Prune ``job``'s network to its target and write the run folder; the report says what came.

    Raises `InfeasibleError` when the target cannot be reached. Everything finished is kept, so
    that the same call with ``resume`` goes on from there.
    """
    recipe = job.recipe
    if job.file_precision not in PRECISIONS:
        raise UsageError(
            f"target {job.target}: ONNX files are written in {', '.join(PRECISIONS)}, not "
            f"{job.file_precision}"
        )
    if job.file_precision == "int8" and job.data is None:
        raise UsageError(f"target {job.target}: int8 needs data for its ranges; add --data")
    criterion = criterion_of(job)
    solver: Allocator = allocators.make(recipe.solver)
    table = None if recipe.table is None else load_table(recipe.table, job.graph, job.target)
    check_prunable(job.graph, recipe.model)
    if recipe.resolved_method() == "iee":
        iee_schedule(job)
    if job.data is not None and recipe.resolved_method() != "oneshot":
        check_gradients(job, criterion)
    opened = (
        open_folder(output, recipe, overwrite=overwrite, resume=resume)
        if rank() == 0
        else nullcontext(RunFolder(output))
    )
    with opened as folder:
        if on_rank_zero(lambda: folder.finished):
            say(f"{output} is finished already")
            return Report.load(folder.report)
        on_rank_zero(lambda: folder.work.mkdir(exist_ok=True))
        pipeline = _Pipeline(job, folder, criterion, solver, table, resume)
        try:
            return pipeline.run()
        finally:
            if pipeline.board is not None:
                pipeline.board.close()


def steps_per_epoch(job: Job) -> int:
    """Optimizer steps of one epoch."""
    if job.data is None:
        raise UsageError("training needs data; add --data")
    return len(loader(job.data.train, job.recipe.batch_size, job.recipe.seed))


def iee_schedule(job: Job) -> IEESchedule:
    """The course of method iee."""
    recipe = job.recipe
    options = {"start": "dense" if recipe.dense_is_trained else "uniform"}
    given = {**options, "seed": recipe.seed, **recipe.iee}
    return IEESchedule.parse(recipe.epochs * steps_per_epoch(job), given)


class _Pipeline:
    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        criterion: Criterion,
        solver: Allocator,
        table: LatencyTable | None,
        resume: bool,
    ) -> None:
        self.job, self.folder, self.resume = job, folder, resume
        self.recipe, self.graph = job.recipe, job.graph
        self.criterion, self.solver, self.given_table = criterion, solver, table
        self.trained = Trained()
        self.budget = Budget.parse(job.recipe.target_latency)
        self.teacher: nn.Module | None = None
        self.watch = Stopwatch(job, folder, self.budget)
        wanted = job.recipe.tensorboard and rank() == 0
        self.board = Board(folder / BOARD) if wanted else None
        self.trainer = Trainer(job.data, folder, resume, self.board)
        self.chosen_by: tuple[Scores, dict[str, int] | None] = (UNSCORED, None)

    def run(self) -> Report:
        """All stages in order; what can be known before training is known before it.

        With several processes rank 0 measures, chooses and writes, and all train.
        """
        table, target = on_rank_zero(self.prepare)
        planner = Planner(self.job, table, self.solver, self.watch)
        if self.recipe.dense_training:
            self.train_dense()
        self.teacher = copy.deepcopy(self.job.module) if self.recipe.distill else None
        if self.recipe.resolved_method() == "iee":
            small, landing = self.explore(planner, target)
        else:
            halp = self.iterate(planner, target) if self.iterative else None
            landing = on_rank_zero(lambda: self.choose(halp, planner, target))
            small = self.fine_tune(slim(self.job.module, landing.allocation.plan))
        return on_rank_zero(lambda: self.finish(small, landing, planner, target))

    def prepare(self) -> tuple[LatencyTable, float]:
        """The table, the target as a share of the dense latency, and that it can be reached."""
        self.watch.export_dense()
        table = self.table()

        def compute() -> Share:
            target = self.watch.target_ratio()
            Planner(self.job, table, self.solver, self.watch).check_reachable(target)
            return Share(target)

        return table, self.folder.once(TARGET, Share, compute).ratio

    @property
    def iterative(self) -> bool:
        """Whether channels are pruned while training goes on."""
        return self.recipe.resolved_method() == "halp"

    # --- training -----------------------------------------------------------------------------

    def config(self, epochs: int, lr: float | None, **changes: Any) -> TrainConfig:
        """The training settings of the recipe."""
        return train_config(self.recipe, epochs, lr, **changes)

    def train_dense(self) -> None:
        """``--from-scratch`` or ``--dense-epochs``: the dense network first."""
        epochs = self.recipe.dense_epochs or max(1, self.recipe.epochs)
        config = self.config(epochs, self.recipe.lr, distill=0.0)
        self.trained.dense = self.trainer.fit(self.job.module, "dense-training", config)

        def keep() -> None:
            save_weights(self.job.module, self.folder / DENSE_WEIGHTS)
            self.watch.export_dense()

        on_rank_zero(keep)

    @property
    def fine_tune_lr(self) -> float:
        """The learning rate after dense training."""
        return fine_tune_lr(self.recipe)

    @property
    def pruning_epochs(self) -> int:
        """Epochs in which ``halp`` prunes: a third of all, at least one."""
        return max(1, self.recipe.epochs // 3) if self.iterative else 0

    def fine_tune(self, small: nn.Module) -> nn.Module:
        """Train the slim network for the epochs that are left."""
        epochs = self.recipe.epochs - self.pruning_epochs
        if self.job.data is None or epochs < 1:
            return small.eval()
        config = self.config(epochs, self.fine_tune_lr)
        self.trained.fine_tuning = self.trainer.fit(
            small, "fine-tuning", config, teacher=self.teacher
        )
        return small

    # --- measuring ----------------------------------------------------------------------------

    def table(self) -> LatencyTable:
        """The table given, the one an interrupted run has made, or a new profile."""
        if self.given_table is not None:
            return self.given_table
        job, recipe, folder = self.job, self.recipe, self.folder

        def profile() -> LatencyTable:
            return make_table(
                *(job.module, job.graph, job.example, job.target, folder / TABLE),
                journal=folder / JOURNAL,
                plan=HarvestPlan(
                    nets=recipe.profile_nets, max_seconds=recipe.profile_seconds, seed=recipe.seed
                ),
                granularity=recipe.granularity,
                name=recipe.model,
                resume=self.resume,
                dense=self.watch.exact,
            )

        table = folder.once(TABLE, LatencyTable, profile)
        check_table(table, job.graph, job.target)
        return table

    # --- choosing -----------------------------------------------------------------------------

    def choose(self, halp: Halp | None, planner: Planner, target: float) -> Landing:
        """Scores by the method, then the measured landing; kept for a resumed run."""
        scores = halp.scores() if halp else dense_scores(self.job, self.criterion)
        caps = halp.plan.widths if halp else None
        self.chosen_by = (scores, caps)
        again = partial(planner.land, scores, caps, target)

        def compute() -> Landing:
            landing = again()
            if self.job.data is not None and self.recipe.epochs:
                landing = confirm(landing, self.confirmed(target), again, target)
            return landing

        return self.folder.once(LANDING, Landing, compute)

    def confirmed(self, target: float) -> Measure:
        """What decides before a training whether a plan has landed."""
        return partial(self.watch.confirmed_ratio, target=target)

    def iterate(self, planner: Planner, target: float) -> Halp:
        """HALP's iterative phase on the masked dense network."""
        every = self.pruning_epochs * self.per_epoch
        steps = min(self.recipe.pruning_steps, every)
        schedule = Schedule(steps, every // steps)

        def solve(
            scores: Scores, fraction: float, at_most: dict[str, int], at_least: dict[str, int]
        ) -> Allocation:
            # further limits are for the landing: here they would hold in full from the start
            return planner.nearest(scores, fraction, at_most, at_least=at_least, limited=False)

        # Room for what the table gets wrong: the landing can prune more, but not take back.
        floor = target * (1 + max(planner.table.calibration.worst, 0.1))
        rule = Halp(self.graph, self.criterion, solve, target, schedule, floor)
        config = self.config(
            self.pruning_epochs, self.fine_tune_lr, schedule="constant", warmup_epochs=0.0, ema=0.0
        )
        self.trained.pruning = self.trainer.fit(
            self.job.module, "pruning", config, rule=rule, teacher=self.teacher
        )
        return rule

    # --- iee ----------------------------------------------------------------------------------

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(self.job)

    def explore(self, planner: Planner, target: float) -> tuple[nn.Module, Landing]:
        """IEE over all epochs; its last update is the measured landing."""
        recipe, schedule = self.recipe, iee_schedule(self.job)
        share = on_rank_zero(lambda: self.corrected(planner, target))

        def settle(update: Update, smallest: Update) -> ChannelPlan:
            def compute() -> Landing:
                measure = partial(self.watch.landing_ratio, target=target)
                again = partial(land, update, smallest, measure, target)
                return confirm(again(), self.confirmed(target), again, target)

            def found() -> Landing:
                began = time.perf_counter()
                landing = self.folder.once(LANDING, Landing, compute)
                # where it was kept, its time went with the epoch that was cut
                landing = replace(landing, seconds=time.perf_counter() - began)
                landing.save(self.folder / LANDING)
                return landing

            return on_rank_zero(found).allocation.plan

        rule = IEE(
            self.job.module,
            self.graph,
            planner.table,
            Budget.share(share),
            self.criterion,
            schedule,
            solver=self.solver,
            granularity=recipe.granularity,
            settle=settle,
        )
        lr = self.fine_tune_lr if self.recipe.dense_is_trained else recipe.lr
        config = self.config(recipe.epochs, lr)
        found = self.trainer.fit(self.job.module, "iee", config, rule=rule, teacher=self.teacher)
        # the landing happens between two steps and is no training
        landing = on_rank_zero(lambda: Landing.load(self.folder / LANDING))
        self.trained.pruning = replace(found, seconds=max(0.0, found.seconds - landing.seconds))
        self.trained.work = rule.work / self.per_epoch
        return rule.slim, landing

    def corrected(self, planner: Planner, target: float) -> float:
        """The predicted share to train towards; a resumed run keeps to it."""
        kept = self.folder.once(CORRECTION, Share, lambda: Share(planner.corrected(target)))
        return kept.ratio

    # --- the end ------------------------------------------------------------------------------

    def accuracy(self, module: nn.Module, onnx: Path) -> float | None:
        """Top-1 in the precision it is deployed in, of the file where that runs; None without data.

        The file's own precision is in it, so that any runtime tells.
        """
        job, where = self.job, None
        what: Path | Artifact = onnx
        if job.target.precision != "fp32" and job.runtime.casts:
            where = replace(job.target, threads=usable_cores())
            if job.runtime.artifact_format == "module":
                what = live_artifact(module, job.example)
        return file_accuracy(what, job.data, self.recipe.workers, where)

    def finish(self, small: nn.Module, landing: Landing, planner: Planner, target: float) -> Report:
        """Save, export, measure what was exported, and report."""
        run, job = self.folder.path, self.job
        delivery = Delivery(job, self.folder, self.watch, target)
        found = delivery.deliver(small, landing)
        if not (self.trained.fine_tuning or self.trained.pruning):
            found = delivery.settle(found, partial(planner.land, *self.chosen_by, target))
        report = make_report(
            job=job,
            folder=self.folder,
            landing=found.landing,
            table=planner.table,
            timed=found.timed,
            budget=self.budget,
            target_ratio=target,
            met=delivery.ratio(found) <= target,
            trained=asdict(self.trained),
            pruning_epochs=self.pruning_epochs,
            accuracy=(
                # random weights have no accuracy worth telling
                self.accuracy(job.module, run / DENSE) if self.recipe.dense_is_trained else None,
                self.accuracy(found.small, run / ONNX),
            ),
            small=found.small,
            scores=self.chosen_by[0],
        )
        write_text(run / PAGE, to_html(report))
        report.save(self.folder.report)  # last: it is what says that the run is finished
        self.folder.clear_work()
        return report
