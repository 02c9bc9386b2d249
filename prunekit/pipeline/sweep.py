"""``sweep``: one profile and one scoring, the best plan within each of many latencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunekit.allocation import Allocation, allocate
from prunekit.allocation.costs import ParamsCost, predict, total
from prunekit.allocation.solvers import Allocator
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.latency import LatencyTable
from prunekit.pipeline.job import Job
from prunekit.pipeline.scoring import criterion_of, dense_scores
from prunekit.report.sweep import Sweep, SweepPoint
from prunekit.support.errors import InfeasibleError, UsageError
from prunekit.support.progress import track
from prunekit.support.registry import allocators


def check(job: Job) -> None:
    """Refuse a criterion or a solver that cannot be used, before anything is measured."""
    criterion_of(job)
    allocators.make(job.recipe.solver)


def sweep(job: Job, table: LatencyTable, points: int) -> Sweep:
    """The curve of saliency kept over predicted latency, from 95 % down to what is reachable.

    Nothing is trained, slimmed or measured: milliseconds are the table's predictions.
    """
    if points < 2:
        raise UsageError(f"--points is {points}; the least is 2")
    graph, recipe = job.graph, job.recipe
    criterion = criterion_of(job)
    scores = dense_scores(job, criterion)
    solver: Allocator = allocators.make(recipe.solver)

    def solve(share: float, at_most: dict[str, int] | None = None) -> Allocation:
        return allocate(
            *(graph, scores, table, Budget.share(share), solver),
            granularity=recipe.granularity,
            at_most=at_most,
        )

    step = recipe.granularity or table.granularity
    smallest = solve(1.0, graph.smallest_widths(step))
    least = smallest.ratio
    if least >= 0.95:
        raise InfeasibleError(
            f"the smallest plan is predicted to take {least:.1%} of the dense latency; there is "
            "nothing to sweep"
        )
    curve: list[SweepPoint] = []
    for share in track(np.linspace(0.95, least, points).tolist(), "solving", points):
        try:
            allocation = solve(min(1.0, share + 1e-9))
        except InfeasibleError:  # for a solver that rounds costs up
            allocation = smallest
        if not curve or allocation.widths != curve[-1].widths:
            curve.append(_point(graph, table, share, allocation))
    dense = graph.dense_widths
    return Sweep(
        model=recipe.model,
        target=job.target.describe(),
        criterion=criterion.name,
        solver=recipe.solver,
        granularity=step,
        dense_ms=predict(graph, ChannelPlan.dense(graph), table).ms,
        sizes={g.id: dense[g.id] for g in graph.groups if g.prunable},
        points=_with_knee(curve),
    )


def _point(
    graph: ChannelGraph, table: LatencyTable, share: float, allocation: Allocation
) -> SweepPoint:
    predicted = predict(graph, allocation.plan, table)
    return SweepPoint(
        asked=round(share, 4),
        ratio=allocation.ratio,
        ms=predicted.ms,
        low_ms=predicted.low_ms,
        high_ms=predicted.high_ms,
        kept=allocation.value,
        macs=graph.macs(allocation.widths) / graph.macs({}),
        params=total(graph, allocation.widths, ParamsCost()) / total(graph, {}, ParamsCost()),
        gap=allocation.gap,
        widths=allocation.widths,
    )


def _with_knee(points: list[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The point furthest above the line from the first to the last is the knee."""
    if len(points) < 3:
        return tuple(points)
    x = np.array([p.ratio for p in points])
    y = np.array([p.kept for p in points])
    line = y[-1] + (y[0] - y[-1]) * (x - x[-1]) / max(x[0] - x[-1], 1e-12)
    best = int(np.argmax(y - line))
    return tuple(replace(p, knee=n == best) for n, p in enumerate(points))
