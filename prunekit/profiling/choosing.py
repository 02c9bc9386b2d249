"""Which networks a profile measures: at random to begin with, then where it is least sure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunekit.allocation import allocate
from prunekit.allocation.solvers import Joint
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph, ChannelGroup, LayerShape
from prunekit.core.plan import ChannelPlan
from prunekit.core.scores import Scores
from prunekit.latency import LatencyTable, Surface
from prunekit.support.errors import InfeasibleError, UsageError

ALLOCATED = 4
"""Candidates that an allocator chose for random scores, each time some are chosen."""
RANDOM = 16
"""Other candidates: random widths, half of them with narrow first or last stages."""
QUICK = Joint(gap=0.02, iterations=12)


def sample_plans(graph: ChannelGraph, granularity: int, nets: int, seed: int) -> list[ChannelPlan]:
    """The dense plan, the smallest one, and random ones from narrow to wide, stages skewed.

    Raises UsageError where all of them would be the dense one.
    """
    if graph.smallest_widths(granularity) == graph.dense_widths:
        widest = max((group.size for group in graph.groups if group.prunable), default=0)
        raise UsageError(
            f"nothing can be pruned at granularity {granularity}, the widest prunable group has "
            f"{widest} channels; take a smaller one"
        )
    smallest = ChannelPlan.from_widths(graph, graph.smallest_widths(granularity))
    plans = [ChannelPlan.dense(graph), smallest]
    rng = np.random.default_rng(seed)
    for keep in np.linspace(0.2, 0.85, max(0, nets - 2)):
        slope = rng.uniform(-0.3, 0.3)
        plans.append(_skewed(graph, granularity, keep, slope, 0.3, rng))
    return plans[: max(nets, 2)]


def choose(
    graph: ChannelGraph, table: LatencyTable, plans: list[ChannelPlan], count: int, seed: int
) -> list[ChannelPlan]:
    """``count`` plans to measure next: of random, skewed and allocator-chosen ones, the least sure.

    Each counts as measured when the next is chosen. Every other one is of the allocator's, whose
    networks are those that predictions are asked for.
    """
    rng = np.random.default_rng((seed, len(plans)))
    drawn = _random(graph, table.granularity, rng)
    likely = _allocated(graph, table, rng)
    fitted = dict(table.surfaces)
    taken = [plan.widths for plan in plans]
    chosen: list[ChannelPlan] = []
    for number in range(len(plans), len(plans) + count):
        pool = [p for p in (likely if number % 2 else drawn) if p.widths not in taken]
        if not pool:
            pool = [p for p in (*drawn, *likely) if p.widths not in taken]
        if not pool:
            break
        best = max(pool, key=lambda plan: table.deviation(graph, plan.widths, fitted))
        fitted = _having_seen(graph, best, fitted)
        taken.append(best.widths)
        chosen.append(best)
    return chosen


def _having_seen(
    graph: ChannelGraph, plan: ChannelPlan, fitted: dict[LayerShape, Surface]
) -> dict[LayerShape, Surface]:
    widths: dict[LayerShape, list[tuple[int, int]]] = {}
    for layer in graph.layers:
        pair = layer.width("in", plan.widths), layer.width("out", plan.widths)
        widths.setdefault(layer.shape, []).append(pair)
    return {
        shape: surface.seen(*np.array(widths[shape]).T) if shape in widths else surface
        for shape, surface in fitted.items()
    }


def _random(graph: ChannelGraph, granularity: int, rng: np.random.Generator) -> list[ChannelPlan]:
    plans = []
    for number in range(RANDOM):
        keep = rng.uniform(0.3, 0.9)
        slope = rng.choice([-1, 1]) * rng.uniform(0.3, 0.9) if number % 2 else 0.0
        plans.append(_skewed(graph, granularity, keep, slope, 0.1 if number % 2 else 0.35, rng))
    return plans


def _allocated(
    graph: ChannelGraph, table: LatencyTable, rng: np.random.Generator
) -> list[ChannelPlan]:
    """What an allocator would choose within budgets from 25 to 85 % of the dense latency."""
    plans = []
    for number in range(ALLOCATED):
        share = 0.25 + 0.6 * (number + rng.uniform()) / ALLOCATED
        budget = Budget.share(share)
        try:
            allocation = allocate(graph, random_scores(graph, rng), table, budget, QUICK)
        except (InfeasibleError, UsageError):  # none so small, or too entangled to solve
            continue
        plans.append(allocation.plan)
    return plans


def random_scores(graph: ChannelGraph, rng: np.random.Generator) -> Scores:
    """Scores as criteria give them: skewed within a group, and groups of different weight."""
    return Scores(
        {
            group.id: rng.gamma(rng.uniform(0.3, 2), 1, group.size) * rng.lognormal(0, 0.7)
            for group in graph.groups
            if group.prunable
        },
        "random",
    )


def _skewed(
    graph: ChannelGraph,
    granularity: int,
    keep: float,
    slope: float,
    jitter: float,
    rng: np.random.Generator,
) -> ChannelPlan:
    """About ``keep`` of every group, more at one end of the network than at the other."""
    order = {group.id: i / max(1, len(graph.groups) - 1) for i, group in enumerate(graph.groups)}
    return plan_by_shares(
        graph,
        granularity,
        lambda group: keep + slope * (order[group.id] - 0.5) + rng.uniform(-jitter, jitter),
    )


def plan_by_shares(
    graph: ChannelGraph, granularity: int, share: Callable[[ChannelGroup], float]
) -> ChannelPlan:
    """About the share that is asked of every prunable group, at the nearest allowed width."""
    widths = {}
    for group in graph.groups:
        if group.prunable:
            allowed = np.array(group.widths(granularity))
            wanted = group.size * min(1.0, max(0.0, share(group)))
            widths[group.id] = int(allowed[np.argmin(np.abs(allowed - wanted))])
    return ChannelPlan.from_widths(graph, widths)
