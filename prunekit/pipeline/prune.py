"""``prune``: the main job, end to end; every stage can be taken up again where it stopped."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit.allocation.solvers import ONE_BUDGET, Allocator
from prunekit.core.run_folder import (
    DENSE_WEIGHTS,
    JOURNAL,
    PAGE,
    SECONDS,
    TABLE,
    TARGET,
    rounds_in,
)
from prunekit.criteria import Criterion
from prunekit.exporting.precision import PRECISIONS
from prunekit.latency import LatencyTable
from prunekit.networks.saved import save_weights
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.delivery import Delivered
from prunekit.pipeline.job import Job, train_config
from prunekit.pipeline.mending import deliver_mended
from prunekit.pipeline.methods import Method, Pruned, check_method, method_of
from prunekit.pipeline.output_folder import open_folder
from prunekit.pipeline.planner import Planner, Share
from prunekit.pipeline.prune_report import make_report
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.run import Run
from prunekit.pipeline.scoring import criterion_of
from prunekit.pipeline.shipped_table import shipped_table
from prunekit.pipeline.table import check_prunable, check_table, load_table, make_table
from prunekit.pipeline.trainer import open_trainer
from prunekit.profiling import HarvestPlan
from prunekit.report import Report, to_html
from prunekit.support.errors import UsageError
from prunekit.support.files import write_text
from prunekit.support.processes import on_rank_zero
from prunekit.support.progress import say
from prunekit.support.registry import allocators
from prunekit.support.stopwatch import stages
from prunekit.train import FitResult

PROFILE_ROUNDS = 2
"""Before a profile may end by its error: by then eight networks have been in it."""


def check(recipe: Recipe) -> None:
    """Raise UsageError for settings that the method or the solver cannot work with."""
    check_method(recipe)
    solver: Allocator = allocators.make(recipe.solver)
    if recipe.limit and isinstance(solver, ONE_BUDGET):
        raise UsageError(
            f"the solver {recipe.solver} takes one budget only; use joint with --limit"
        )


def prune(job: Job, output: Path, *, overwrite: bool = False, resume: bool = False) -> Report:
    """Prune ``job``'s network to its target and write the run folder; the report says what came.

    Raises `InfeasibleError` when the target cannot be reached. Everything finished is kept, so
    that the same call with ``resume`` goes on from there.
    """
    tools = _checked(job)
    with open_folder(output, job.recipe, overwrite=overwrite, resume=resume) as folder:
        if on_rank_zero(lambda: folder.finished):
            say(f"{output} is finished already")
            return Report.load(folder.report)
        with open_trainer(
            job.data, folder, resume=resume, tensorboard=job.recipe.tensorboard
        ) as trainer:
            stages.keep_in(folder / SECONDS)
            stages.announce(tools.method.stages(job.recipe))
            comparison = DenseComparison(job, folder)
            return _run(Run(job, tools.criterion, folder, comparison, trainer), tools)


@dataclass(frozen=True)
class _Tools:
    """What the recipe names, made."""

    method: Method
    criterion: Criterion
    solver: Allocator
    table: LatencyTable | None


def _checked(job: Job) -> _Tools:
    """The tools of a job, with all that cannot work refused before anything is written."""
    recipe = job.recipe
    if job.file_precision not in PRECISIONS:
        raise UsageError(
            f"target {job.target}: ONNX files are written in {', '.join(PRECISIONS)}, not "
            f"{job.file_precision}"
        )
    if job.file_precision == "int8" and job.data is None:
        raise UsageError(f"target {job.target}: int8 needs data for its ranges; add --data")
    check(recipe)
    tools = _Tools(
        method_of(recipe),
        criterion_of(job),
        allocators.make(recipe.solver),
        None if recipe.table is None else load_table(recipe.table, job.graph, job.target),
    )
    check_prunable(job.graph, recipe.model)
    tools.method.check_job(job, tools.criterion)
    return tools


def _run(run: Run, tools: _Tools) -> Report:
    """All stages in order; what can be known before training is known before it.

    With several processes rank 0 measures, chooses and writes, and all train.
    """
    table = on_rank_zero(lambda: _table(run, tools.table))
    planner = Planner(run.job, table, tools.solver, run.comparison)
    target = on_rank_zero(lambda: _target(run, planner))
    dense = _train_dense(run) if run.job.recipe.dense_training else None
    if run.job.recipe.distill:
        run = replace(run, teacher=copy.deepcopy(run.job.module))
    pruned = tools.method.prune(run, planner, target)
    pruned = replace(pruned, trained=replace(pruned.trained, dense=dense))
    pruned, delivered = deliver_mended(run, planner, pruned, target)
    return on_rank_zero(lambda: _report(run, table, target, pruned, delivered))


def _table(run: Run, given: LatencyTable | None) -> LatencyTable:
    """The table given, the one an interrupted run has made, or a new profile."""
    run.comparison.export_dense()
    if given is not None:
        return given
    job, recipe, folder = run.job, run.job.recipe, run.folder

    def profile() -> LatencyTable:
        if recipe.shipped and not rounds_in(folder / JOURNAL):
            table = shipped_table(job, folder, run.comparison, folder / TABLE)
            if table is not None:
                return table
        return make_table(
            *(job.module, job.graph, job.example, job.target, folder / TABLE),
            journal=folder / JOURNAL,
            plan=HarvestPlan(
                nets=recipe.profile_nets,
                max_seconds=recipe.profile_seconds,
                min_rounds=PROFILE_ROUNDS,
                target_error=recipe.profile_error,
                seed=recipe.seed,
            ),
            granularity=recipe.granularity,
            name=recipe.model,
            resume=run.trainer.resume,
            dense=run.comparison.exact,
        )

    with stages.stage("profiling"):
        table = folder.once(TABLE, LatencyTable, profile)
    check_table(table, job.graph, job.target)
    return table


def _target(run: Run, planner: Planner) -> float:
    """The target as a share of the dense latency, which can be reached; a resumed run's stays."""

    def compute() -> Share:
        target = run.comparison.target_ratio()
        planner.check_reachable(target)
        return Share(target)

    return run.folder.once(TARGET, Share, compute).ratio


def _train_dense(run: Run) -> FitResult:
    """``--from-scratch`` or ``--dense-epochs``: the dense network first."""
    recipe, module = run.job.recipe, run.job.module
    epochs = recipe.dense_epochs or max(1, recipe.epochs)
    config = train_config(recipe, epochs, recipe.lr, distill=0.0)
    trained = run.trainer.fit(module, "dense-training", config)

    def keep() -> None:
        save_weights(module, run.folder / DENSE_WEIGHTS)
        run.comparison.export_dense()

    on_rank_zero(keep)
    return trained


def _report(
    run: Run, table: LatencyTable, target: float, pruned: Pruned, delivered: Delivered | None
) -> Report:
    """Report what was delivered, which rank 0 knows."""
    if delivered is None:
        raise UsageError("what was delivered is known to rank 0 only")
    report = make_report(run, table, target, pruned, delivered)
    write_text(run.folder / PAGE, to_html(report))
    report.save(run.folder.report)  # last: it is what says that the run is finished
    run.folder.clear_work()
    return report
