"""The parts of a run's report, one function each; those above the line are of all commands."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunekit.allocation import Allocation, explain
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.ratio import PairedRatio
from prunekit.core.run_folder import DENSE, ONNX, RunFolder
from prunekit.core.scores import Scores
from prunekit.core.target import package_version
from prunekit.latency import LatencyTable
from prunekit.measuring.bench import BenchResult
from prunekit.pipeline.landing import Landing, meets
from prunekit.pipeline.recipes.base import TrainingRecipe
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.trainer import Trained
from prunekit.report.schema import (
    AllocationPart,
    AttemptPart,
    BudgetPart,
    GroupPart,
    LatencyPart,
    Pair,
    TablePart,
    TrainingPart,
)
from prunekit.support.files import sha256_file

CONFIDENCE = 0.95


def versions() -> dict[str, str]:
    """Of the packages that decide what a run gives."""
    return {name: package_version(name) for name in ("prunekit", "torch", "onnx", "onnxruntime")}


def digests(artifacts: dict[str, str]) -> dict[str, str]:
    """Of the two files that were timed."""
    return {what: sha256_file(artifacts[what]) for what in ("dense", "onnx")}


def file_bytes(folder: RunFolder) -> Pair:
    """Sizes of the ONNX files."""
    return Pair(dense=_size(folder / DENSE), pruned=_size(folder / ONNX))


def _size(path: Path) -> int:
    return path.stat().st_size


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def training_cost(recipe: TrainingRecipe, trained: Trained) -> TrainingPart:
    """FLOPs relative to a dense run of ``dense_epochs`` (else ``epochs``), and seconds.

    Forward and backward count three forwards, a teacher's forward one.
    """
    reference = recipe.dense_epochs or recipe.epochs
    relative = None
    if recipe.labelled and reference:
        taught = recipe.epochs / 3 if recipe.distill else 0
        dense = reference if recipe.dense_training else 0
        relative = (trained.work + taught + dense) / reference
    return TrainingPart(
        relative_flops=relative,
        seconds=trained.seconds,
        dense_seconds=trained.dense_seconds,
    )


# --- of channel pruning ---------------------------------------------------------------------------


def budget_part(budget: Budget, target: float, timed: BenchResult) -> BudgetPart:
    """What was asked, in the milliseconds of this run."""
    dense_ms = timed.measurements[0].median_ms
    limit_ms = target * dense_ms if budget.relative else budget.value
    return BudgetPart(kind=budget.kind, requested=str(budget), limit_ms=limit_ms)


def latency_part(
    timed: BenchResult,
    allocation: Allocation,
    target: float,
    against: PairedRatio,
    sure: float,
    mended: int,
) -> LatencyPart:
    """What was measured, and what was predicted; ``against`` is what the limit is for."""
    dense, pruned = timed.measurements
    ratio = timed.ratios[0]
    return LatencyPart(
        dense_ms=dense.median_ms,
        pruned_ms=pruned.median_ms,
        dense_ci_ms=dense.interval(CONFIDENCE),
        pruned_ci_ms=pruned.interval(CONFIDENCE),
        ratio=ratio.ratio,
        ratio_ci=(ratio.low, ratio.high),
        confidence=ratio.confidence,
        rounds=ratio.rounds,
        predicted_ms=allocation.cost,
        limit_ratio=target,
        met=meets(against, target, sure),
        probability=against.probability_below(target),
        sure=sure,
        sessions=ratio.sessions,
        lost=timed.lost,
        mended=mended,
    )


def allocation_part(
    recipe: Recipe, allocation: Allocation, table: LatencyTable, scores: Scores
) -> AllocationPart:
    """How the widths were chosen, and the share kept of the dense network's ``scores``."""
    keep = allocation.plan.keep
    whole = sum(float(values.sum()) for values in scores.by_group.values())
    kept = sum(float(v[list(keep[group])].sum()) for group, v in scores.by_group.items())
    return AllocationPart(
        solver=allocation.solver,
        gap=allocation.gap,
        status=allocation.status,
        value=kept / whole if whole > 0 else allocation.value,
        method=recipe.resolved_method(),
        criterion=recipe.resolved_criterion(),
        granularity=recipe.granularity or table.granularity,
    )


def attempt_parts(landing: Landing) -> tuple[AttemptPart, ...]:
    """Every plan that was measured on the way."""
    widths = landing.allocation.widths
    return tuple(
        AttemptPart(
            asked=attempt.asked,
            predicted=attempt.predicted,
            ratio=attempt.ratio,
            ratio_ci=(attempt.low, attempt.high),
            chosen=attempt.widths == widths,
        )
        for attempt in landing.attempts
    )


def table_part(table: LatencyTable) -> TablePart:
    """What the predictions are from."""
    protocol = table.protocol
    return TablePart(
        source=protocol.source,
        nets=protocol.nets,
        rounds=protocol.rounds,
        **table.calibration.errors,
    )


def width_pairs(graph: ChannelGraph, widths: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Every prunable group's channels before and after."""
    return {g.id: (g.size, widths[g.id]) for g in graph.groups if g.prunable}


def group_parts(
    graph: ChannelGraph,
    plan: ChannelPlan,
    table: LatencyTable,
    scores: Scores,
    granularity: int | None,
) -> dict[str, GroupPart]:
    """Every prunable group: what it keeps, and what it saves."""
    return {
        name: GroupPart(
            before=group.before,
            after=group.after,
            saliency=group.saliency,
            saved_ms=group.saved,
            at_minimum=group.at_minimum,
        )
        for name, group in explain(graph, plan, table, scores, granularity).items()
    }
