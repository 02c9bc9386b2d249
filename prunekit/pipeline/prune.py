"""``prune``: the main job, end to end; every stage can be taken up again where it stopped."""

from __future__ import annotations

import copy
import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.allocation import Allocator
from prunekit.artifact import Artifact
from prunekit.benching import BenchResult
from prunekit.budget import Budget
from prunekit.criteria import Criterion, Magnitude, score
from prunekit.errors import InfeasibleError, UsageError
from prunekit.exporting import live_artifact
from prunekit.exporting.precision import PRECISIONS
from prunekit.latency import LatencyTable
from prunekit.pipeline.folder import JOURNAL, TABLE, RunFolder, open_folder
from prunekit.pipeline.landing import AIM, BAND, Attempt, Landing, land
from prunekit.pipeline.reporting import file_accuracy, make_report
from prunekit.pipeline.scoring import criterion_of, dense_scores
from prunekit.pipeline.setup import Job, fine_tune_lr, train_config
from prunekit.pipeline.stopwatch import Stopwatch
from prunekit.pipeline.tables import load_table, make_table
from prunekit.pipeline.tensorboard import Board
from prunekit.pipeline.trainer import Trainer
from prunekit.plan import ChannelPlan
from prunekit.profiling import HarvestPlan
from prunekit.progress import say
from prunekit.ranks import from_main, rank
from prunekit.registry import allocators
from prunekit.report import Report, to_html
from prunekit.runs import save, save_weights
from prunekit.scores import Scores
from prunekit.serialize import load_json, read_object, save_json, write_text
from prunekit.sparsify import Allocation, Halp, IEESchedule, allocate
from prunekit.sparsify.halp import Schedule
from prunekit.sparsify.iee import IEE, Update
from prunekit.surgery import slim
from prunekit.target import usable_cores
from prunekit.timing import PairedRatio
from prunekit.train import FitResult, TrainConfig, loader

MAX_AGAIN = 2
"""How often a final miss is answered with another landing, where nothing was trained since."""


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
    opened = (
        open_folder(output, recipe, overwrite=overwrite, resume=resume)
        if rank() == 0
        else nullcontext(RunFolder(output))
    )
    with opened as folder:
        if from_main(lambda: folder.finished):
            say(f"{output} is finished already")
            return Report.load(folder.report)
        from_main(lambda: folder.work.mkdir(exist_ok=True))
        pipeline = _Pipeline(job, folder, criterion, solver, table, resume)
        try:
            return pipeline.run()
        finally:
            if pipeline.board is not None:
                pipeline.board.close()


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
        self.board = Board(folder.path / "tensorboard") if wanted else None
        self.trainer = Trainer(job.data, folder, resume, self.board)
        self.chosen_by: tuple[Scores, dict[str, int] | None] = (Scores({}, "none"), None)

    def run(self) -> Report:
        """All stages in order; what can be known before training is known before it.

        With several processes rank 0 measures, chooses and writes, and all train.
        """
        budget = self.budget
        if self.recipe.resolved_method() == "iee":
            _ = self.schedule  # wrong options are refused before anything is done
        table, target_ratio = from_main(self.prepare)
        if self.recipe.dense_training:
            self.train_dense()
        self.teacher = copy.deepcopy(self.job.module) if self.recipe.distill else None
        if self.recipe.resolved_method() == "iee":
            small, landing = self.explore(table, target_ratio)
        else:
            halp = self.iterate(table, target_ratio) if self.iterative else None
            landing = from_main(lambda: self.choose(halp, table, target_ratio))
            small = self.fine_tune(slim(self.job.module, landing.allocation.plan))
        return from_main(lambda: self.finish(small, landing, table, budget, target_ratio))

    def prepare(self) -> tuple[LatencyTable, float]:
        """The table, the target as a share of the dense latency, and that it can be reached."""
        table = self.table()
        self.watch.export_dense()
        kept = self.folder.work / "target.json"
        if self.resume and kept.is_file():  # a resumed run goes for the same share
            return table, float(read_object(kept, "target")["ratio"])
        target = self.watch.target_ratio()
        self.check_reachable(table, target)
        write_text(kept, json.dumps({"ratio": target}))
        return table, target

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
            save_weights(self.job.module, self.folder.path / "dense.safetensors")
            self.watch.export_dense()

        from_main(keep)

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
        own = self.folder.path / TABLE
        if self.resume and own.is_file():
            return load_table(own, self.graph, self.job.target)
        return make_table(
            self.job.module,
            self.graph,
            self.job.example,
            self.job.target,
            own,
            journal=self.folder.work / JOURNAL,
            plan=HarvestPlan(
                nets=self.recipe.profile_nets,
                max_seconds=self.recipe.profile_seconds,
                seed=self.recipe.seed,
            ),
            granularity=self.recipe.granularity,
            name=self.recipe.model,
            resume=self.resume,
        )

    def check_reachable(self, table: LatencyTable, target: float) -> None:
        """Refuse a target below the smallest network's latency, as measured, before training.

        And limits that not even the smallest plan keeps.
        """
        if self.recipe.limits:
            self.smallest(Scores({}, "none"), table, limited=True)
        least = self.smallest(Scores({}, "none"), table)
        if least.ratio < target * (1 - max(table.calibration.worst, 0.05)):
            return
        timed = self.watch.measure(least.plan)
        ratio, (whole, small) = timed.ratios[0], timed.measurements
        if ratio.ratio > target:
            raise InfeasibleError(
                f"{self.budget} is below what is reachable: the smallest network measures "
                f"{ratio.ratio:.1%} [{ratio.low:.1%}, {ratio.high:.1%}] of the dense one, "
                f"{small.median_ms:.4g} of {whole.median_ms:.4g} ms; ask for "
                f"{math.ceil(100 * ratio.high)}% or more"
            )

    # --- choosing -----------------------------------------------------------------------------

    def choose(self, halp: Halp | None, table: LatencyTable, target: float) -> Landing:
        """Scores by the method, then the measured landing; kept for a resumed run."""
        kept = self.folder.work / "landing.json"
        scores = halp.scores() if halp else self.scores()
        caps = halp.plan.widths if halp else None
        self.chosen_by = (scores, caps)
        if self.resume and kept.is_file():
            return load_json(kept, Landing, "landing", 1)
        landing = self.land_on(scores, caps, table, target)
        save_json(kept, landing, "landing", 1)
        return landing

    def land_on(
        self,
        scores: Scores,
        caps: dict[str, int] | None,
        table: LatencyTable,
        target: float,
        known: tuple[Attempt, ...] = (),
    ) -> Landing:
        """The measured loop on the given scores; ``caps`` are widths not to exceed."""

        def solve(ratio: float) -> Allocation:
            wanted = Budget("latency", ratio, relative=True, text=f"{ratio:.1%}")
            return self.allocate(scores, table, wanted, caps)

        def smallest(_: float) -> Allocation:
            return self.smallest(scores, table, limited=True)

        def measure(plan: ChannelPlan) -> PairedRatio:
            return self.watch.landing_ratio(plan, target)

        return land(solve, smallest, measure, target, known)

    def allocate(
        self,
        scores: Scores,
        table: LatencyTable,
        budget: Budget,
        at_most: dict[str, int] | None = None,
        *,
        limited: bool = True,
    ) -> Allocation:
        """Solve under a predicted-latency budget, and the recipe's other limits."""
        return allocate(
            self.graph,
            scores,
            table,
            budget,
            self.solver,
            granularity=self.recipe.granularity,
            at_most=at_most,
            limits=self.recipe.limits if limited else (),
            depth=self.recipe.depth,
        )

    def smallest(self, scores: Scores, table: LatencyTable, *, limited: bool = False) -> Allocation:
        """Every group at its smallest width; with ``limited``, where the limits allow it."""
        step = self.recipe.granularity or table.granularity
        least = self.graph.smallest_widths(step)
        if self.recipe.depth:
            least |= {g: 0 for groups in self.graph.droppable.values() for g in groups}
        everything = Budget("latency", 1.0, relative=True, text="smallest")
        return self.allocate(scores, table, everything, at_most=least, limited=limited)

    def scores(self) -> Scores:
        """One-shot scores of the dense network."""
        return dense_scores(self.job, self.criterion)

    def iterate(self, table: LatencyTable, target: float) -> Halp:
        """HALP's iterative phase on the masked dense network."""
        every = self.pruning_epochs * self.per_epoch
        steps = min(self.recipe.pruning_steps, every)
        schedule = Schedule(steps, every // steps)

        def solve(scores: Scores, fraction: float, at_most: dict[str, int]) -> Allocation:
            wanted = Budget("latency", fraction, relative=True, text=f"{fraction:.1%}")
            try:
                # further limits are for the landing: here they would hold in full from the start
                return self.allocate(scores, table, wanted, at_most, limited=False)
            except InfeasibleError:
                return self.smallest(scores, table)

        # Room for what the table gets wrong: the landing can prune more, but not take back.
        floor = target * (1 + max(table.calibration.worst, 0.1))
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
        if self.job.data is None:
            raise UsageError("training needs data; add --data")
        return len(loader(self.job.data.train, self.recipe.batch_size, self.recipe.seed))

    @cached_property
    def schedule(self) -> IEESchedule:
        """The course of method iee."""
        options = {"start": "dense" if self.recipe.dense_is_trained else "uniform"}
        given = {**options, "seed": self.recipe.seed, **self.recipe.iee}
        return IEESchedule.parse(self.recipe.epochs * self.per_epoch, given)

    def explore(self, table: LatencyTable, target: float) -> tuple[nn.Module, Landing]:
        """IEE over all epochs; its last update is the measured landing."""
        recipe, schedule = self.recipe, self.schedule
        share = from_main(lambda: self.corrected(table, target))
        kept = self.folder.work / "landing.json"

        def settle(update: Update, smallest: Update) -> ChannelPlan:
            def found() -> Landing:
                if self.resume and kept.is_file():
                    return load_json(kept, Landing, "landing", 1)
                began = time.perf_counter()
                measure = partial(self.watch.landing_ratio, target=target)
                landing = land(update, smallest, measure, target)
                took = {"seconds": time.perf_counter() - began}
                write_text(self.folder.work / "measuring.json", json.dumps(took))
                save_json(kept, landing, "landing", 1)
                return landing

            return from_main(found).allocation.plan

        rule = IEE(
            self.job.module,
            self.graph,
            table,
            Budget("latency", share, relative=True, text=f"{share:.1%}"),
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
        took = read_object(self.folder.work / "measuring.json", "measuring")["seconds"]
        self.trained.pruning = replace(found, seconds=max(0.0, found.seconds - float(took)))
        self.trained.work = rule.work / self.per_epoch
        return rule.slim, from_main(lambda: load_json(kept, Landing, "landing", 1))

    def corrected(self, table: LatencyTable, target: float) -> float:
        """The predicted share to train towards, so that ``target`` is measured in the end."""
        kept = self.folder.work / "correction.json"
        if self.resume and kept.is_file():
            return float(read_object(kept, "correction")["ratio"])
        scores = score(self.job.module, self.graph, Magnitude())
        try:
            wanted = Budget("latency", target, relative=True, text=f"{target:.1%}")
            near = self.allocate(scores, table, wanted)
        except InfeasibleError:
            near = self.smallest(scores, table)
        measured = self.watch.measure(near.plan).ratios[0].ratio
        least = self.smallest(scores, table).ratio * 1.0001
        ratio = min(0.99, max(least, target * AIM * near.ratio / measured))
        write_text(kept, json.dumps({"ratio": ratio}))
        return ratio

    # --- the end ------------------------------------------------------------------------------

    def deploy(self, small: nn.Module, landing: Landing, target: float) -> BenchResult:
        """Save and export ``small``, and time what was exported."""
        return self.watch.final_time(small, self.write(small, landing), target)

    def write(self, small: nn.Module, landing: Landing) -> Artifact:
        """Save and export ``small``."""
        run, job, plan = self.folder.path, self.job, landing.allocation.plan
        save(run, small, plan, job.model.spec, job.model.arguments, self.graph.input_shapes)
        return self.watch.export(small, run / "model.onnx", "plan.json")

    def settle(
        self, found: tuple[nn.Module, Landing, BenchResult], table: LatencyTable, target: float
    ) -> tuple[nn.Module, Landing, BenchResult]:
        """Land again by what the exported files take, where nothing was trained since.

        They are measured for longer than plans on the way, and what that differs by is taken for
        all of those. A miss is followed by a smaller network; one further below the limit than the
        band by a larger one, if that meets it too.
        """
        for _ in range(MAX_AGAIN):
            small, landing, timed = found
            final, widths = self.watch.against_limit(timed, target), landing.allocation.widths
            low = final.ratio < target - BAND
            if final.ratio <= target and not low:
                break
            way = "higher" if low else "lower"
            share = final.ratio / target
            say(f"the exported network takes {share:.1%} of the limit; landing again, {way}")
            (found_before,) = (a.ratio for a in landing.attempts if a.widths == widths)
            off = final.ratio / found_before
            known = tuple(
                replace(a, ratio=off * a.ratio, low=off * a.low, high=off * a.high)
                for a in landing.attempts
            )
            again = self.land_on(*self.chosen_by, table, target, known)
            measured = (*landing.attempts, *again.attempts[len(known) :])
            again = replace(again, attempts=measured)
            if again.allocation.widths == widths:
                break
            other = slim(self.job.module, again.allocation.plan).eval()
            timed = self.deploy(other, again, target)
            if low and self.watch.against_limit(timed, target).ratio > target:
                self.write(small, landing)
                return small, replace(landing, attempts=again.attempts), found[2]
            found = other, again, timed
        return found

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

    def finish(
        self,
        small: nn.Module,
        landing: Landing,
        table: LatencyTable,
        budget: Budget,
        target: float,
    ) -> Report:
        """Save, export, measure what was exported, and report."""
        run, job = self.folder.path, self.job
        timed = self.deploy(small, landing, target)
        if not (self.trained.fine_tuning or self.trained.pruning):
            small, landing, timed = self.settle((small, landing, timed), table, target)
        report = make_report(
            job=job,
            folder=self.folder,
            landing=landing,
            table=table,
            timed=timed,
            budget=budget,
            target_ratio=target,
            met=self.watch.against_limit(timed, target).ratio <= target,
            trained=asdict(self.trained),
            pruning_epochs=self.pruning_epochs,
            accuracy=(
                # random weights have no accuracy worth telling
                self.accuracy(job.module, run / "dense.onnx")
                if self.recipe.dense_is_trained
                else None,
                self.accuracy(small, run / "model.onnx"),
            ),
            small=small,
            scores=self.chosen_by[0],
        )
        write_text(run / "report.html", to_html(report))
        report.save(self.folder.report)  # last: it is what says that the run is finished
        self.folder.clear_work()
        return report
