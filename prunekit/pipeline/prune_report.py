"""The report of a finished ``prune``, from what was measured."""

from __future__ import annotations

from prunekit.core.run_folder import DENSE, LOG, ONNX
from prunekit.latency import LatencyTable
from prunekit.pipeline.accuracy import accuracy_part, deployed_scores
from prunekit.pipeline.delivery import Delivered
from prunekit.pipeline.methods import Pruned
from prunekit.pipeline.report_parts import (
    allocation_part,
    attempt_parts,
    budget_part,
    digests,
    file_bytes,
    group_parts,
    latency_part,
    parameters,
    table_part,
    training_cost,
    versions,
    width_pairs,
)
from prunekit.pipeline.run import Run
from prunekit.report import Report, read_log
from prunekit.report.schema import AccuracyPart, Pair
from prunekit.support.stopwatch import stages


def make_report(
    run: Run, table: LatencyTable, target: float, pruned: Pruned, delivered: Delivered
) -> Report:
    """Put the parts together; whether the target was met is decided on the file's latency."""
    graph, recipe, timed = run.job.graph, run.job.recipe, delivered.timed
    allocation = delivered.landing.allocation
    widths, plan = allocation.widths, allocation.plan
    against = run.comparison.against_limit(timed, target)
    mended = len(pruned.trained.mending)
    artifacts = run.folder.artifacts()
    epochs, updates = read_log(run.folder / LOG)
    return Report(
        model=recipe.model,
        target=run.job.target,
        environment=timed.environment,
        budget=budget_part(run.comparison.budget, target, timed),
        latency=latency_part(timed, allocation, target, against, recipe.confidence, mended),
        accuracy=_accuracy_part(run, delivered),
        macs=Pair(dense=graph.macs({}), pruned=graph.macs(widths)),
        params=Pair(dense=parameters(run.job.module), pruned=parameters(delivered.small)),
        memory=Pair(dense=graph.memory({}), pruned=graph.memory(widths)),
        file_bytes=file_bytes(run.folder),
        training_cost=training_cost(recipe, pruned.trained),
        allocation=allocation_part(recipe, allocation, table, pruned.scores),
        repair=delivered.repair,
        landing=attempt_parts(delivered.landing),
        table=table_part(table),
        widths=width_pairs(graph, widths),
        groups=group_parts(graph, plan, table, pruned.scores, recipe.granularity),
        frozen={group.id: group.reason for group in graph.groups if not group.prunable},
        artifacts=artifacts,
        digests=digests(artifacts),
        seed=recipe.seed,
        recipe=recipe.model_dump(exclude_none=True),
        versions=versions(),
        epochs=epochs,
        updates=updates,
        seconds={stage: round(spent, 2) for stage, spent in stages.seconds.items()},
    )


def _accuracy_part(run: Run, delivered: Delivered) -> AccuracyPart:
    """Of both files; random weights have no accuracy worth telling."""
    job, dense = run.job, None
    if job.recipe.dense_is_trained:
        dense = deployed_scores(job, job.module, run.folder / DENSE)
    pruned = deployed_scores(job, delivered.small, run.folder / ONNX)
    return accuracy_part(job.data, dense, pruned)
