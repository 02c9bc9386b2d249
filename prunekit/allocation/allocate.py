"""``allocate``: scores and a budget in, widths and the plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prunekit.allocation.costs import (
    CostModel,
    LatencyCost,
    MacsCost,
    ParamsCost,
    WeightBytes,
    total,
)
from prunekit.allocation.memory import MemoryBudget
from prunekit.allocation.solvers import (
    Allocator,
    Joint,
    Limit,
    Problem,
    Solution,
    Uniform,
    Variable,
)
from prunekit.allocation.terms import layer_term, together_term
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph, ChannelGroup
from prunekit.core.plan import ChannelPlan
from prunekit.core.scores import Scores
from prunekit.latency import LatencyTable
from prunekit.support.errors import InfeasibleError, UsageError

TOGETHER = 4.0
"""The price of an impossible plan, in dense networks."""


@dataclass(frozen=True)
class Allocation:
    """The chosen plan with what it costs and keeps; ``gap`` bounds what a better one could add."""

    plan: ChannelPlan
    widths: dict[str, int]
    value: float
    cost: float
    dense_cost: float
    limit: float
    unit: str
    gap: float
    status: str
    solver: str

    @property
    def ratio(self) -> float:
        """Predicted cost over the dense network's."""
        return self.cost / self.dense_cost


def allocate(
    graph: ChannelGraph,
    scores: Scores,
    costs: LatencyTable | CostModel | None,
    budget: Budget,
    solver: Allocator | None = None,
    *,
    granularity: int | None = None,
    at_most: Mapping[str, int] | None = None,
    at_least: Mapping[str, int] | None = None,
    locked: Mapping[str, Sequence[int]] | None = None,
    limits: Sequence[Budget] = (),
    depth: bool = False,
) -> Allocation:
    """The widths that keep the most saliency within ``budget``, and the plan that keeps the best.

    With ``depth`` whole residual blocks may go too: a group inside of one then has width zero. And
    within ``limits``, further budgets such as ``params=1.5M`` or ``memory=8MiB`` (solvers joint and
    milp).

    ``costs`` is a latency table, a cost model, or None for another budget than latency. Widths
    are multiples of ``granularity`` (default: the table's, else 1) and of the group's own, or the
    full width; ``at_most`` and ``at_least`` bound them. ``locked`` channels stay, so that only
    the others compete. Raises `InfeasibleError` with the smallest reachable cost.
    """
    model, block = cost_model(costs, budget, granularity)
    dense = cost_of(graph, {}, budget, model)
    limit = budget.limit(dense)
    bounds = Bounds(at_most or {}, at_least or {}, locked or {})
    bounds.check(graph)
    _check(graph, scores, granularity)
    problem = build_problem(graph, scores, model, limit, block, bounds, depth=depth)
    plain = tuple(_limit(graph, costs, other) for other in limits if other.kind != "memory")
    solution = _solve(graph, replace(problem, limits=plain), budget, limits, solver or Joint())
    cost = cost_of(graph, solution.widths, budget, model)
    if solution.status == "infeasible":
        raise _out_of_reach(budget, limits, limit, cost, dense, model.unit)
    best = sum(v.values[-1] for v in problem.variables)
    plan = ChannelPlan.from_widths(graph, solution.widths, scores, locked)
    predicted = {f"{budget.kind}_{model.unit}".lower(): cost}
    plan = replace(plan, predicted=predicted)
    return Allocation(
        plan=plan,
        widths=solution.widths,
        value=solution.value / best if best else 1.0,
        cost=cost,
        dense_cost=dense,
        limit=limit,
        unit=model.unit,
        gap=solution.gap,
        status=solution.status,
        solver=solution.solver,
    )


def _out_of_reach(
    budget: Budget, limits: Sequence[Budget], limit: float, cost: float, dense: float, unit: str
) -> InfeasibleError:
    if limits:
        asked = ", ".join(map(str, limits))
        return InfeasibleError(
            f"no plan was found within {asked} and the {budget.kind} budget at once; ask for more"
        )
    return InfeasibleError(
        f"{budget} ({limit:.4g} {unit}) is below what is reachable: the smallest plan "
        f"costs {cost:.4g} {unit}, {cost / dense:.1%} of the dense "
        f"{dense:.4g}; ask for at least that"
    )


def _check(graph: ChannelGraph, scores: Scores, granularity: int | None) -> None:
    if granularity is not None and granularity < 1:
        raise UsageError(f"`granularity` is {granularity}; the least is 1")
    for name, values in scores.by_group.items():
        size = graph.group(name).size
        if values.shape != (size,):
            raise UsageError(
                f"{scores.criterion} scores of group {name!r} have shape {values.shape}, not one "
                f"per channel: ({size},)"
            )


def _solve(
    graph: ChannelGraph,
    problem: Problem,
    budget: Budget,
    limits: Sequence[Budget],
    solver: Allocator,
) -> Solution:
    """The solver's answer, within budgets of memory too."""
    solve = solver.solve
    for other in limits:
        if other.kind == "memory":
            memory = MemoryBudget(graph, other.limit(graph.memory({})), str(other))
            solve = partial(memory.solve, solve=solve)
    if budget.kind == "memory":
        return MemoryBudget(graph, problem.budget).solve(problem, solve, main=True)
    return solve(problem)


def cost_of(
    graph: ChannelGraph, widths: Mapping[str, int], budget: Budget, costs: CostModel
) -> float:
    """What the network costs at the given widths, in the budget's own unit."""
    if budget.kind == "memory":
        return float(graph.memory(widths))
    return total(graph, widths, costs)


def cost_model(
    costs: LatencyTable | CostModel | None, budget: Budget, granularity: int | None
) -> tuple[CostModel, int]:
    """The cost model of the budget's kind, and the granularity the table or the caller asks for."""
    table = costs if isinstance(costs, LatencyTable) else None
    if isinstance(costs, LatencyCost):
        table = costs.table
    block = granularity or (table.granularity if table is not None else 1)
    if costs is not None and not isinstance(costs, LatencyTable):
        return costs, block
    if budget.kind != "latency":
        of_kind: dict[str, CostModel] = {
            "macs": MacsCost(),
            "params": ParamsCost(),
            "memory": WeightBytes(),
        }
        return of_kind[budget.kind], block
    if table is None:
        raise UsageError("a latency budget needs a latency table; run `prunekit profile`")
    return LatencyCost(table), block


def _limit(graph: ChannelGraph, costs: LatencyTable | CostModel | None, budget: Budget) -> Limit:
    table = costs if isinstance(costs, LatencyTable) else getattr(costs, "table", None)
    model, _ = cost_model(table, budget, None)
    terms = tuple(layer_term(layer, model) for layer in graph.layers)
    return Limit(str(budget), terms, budget.limit(total(graph, {}, model)), model.constant)


@dataclass(frozen=True)
class Bounds:
    """Limits on the widths of some groups, and channels that stay."""

    at_most: Mapping[str, int] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    locked: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def check(self, graph: ChannelGraph) -> None:
        """Raise UsageError, naming the group, where no width can keep to this."""
        for group in (*self.at_most, *self.at_least, *self.locked):
            graph.group(group)
        for name, locked in self.locked.items():
            size = graph.group(name).size
            wrong = sorted({i for i in locked if not 0 <= i < size})
            if wrong:
                raise UsageError(
                    f"`locked` names channel {wrong[0]} of group {name!r}, which has {size}"
                )
            if len(set(locked)) != len(locked):
                raise UsageError(
                    f"`locked` names a channel of group {name!r} twice; once is enough"
                )
            most = self.at_most.get(name, size)
            if len(locked) > most:
                raise UsageError(
                    f"{len(locked)} channels of group {name!r} are `locked` but `at_most` {most} "
                    "may stay; unlock some, or allow more"
                )
        for name, least in self.at_least.items():
            size = graph.group(name).size
            if least > size:
                raise UsageError(
                    f"`at_least` asks for {least} channels of group {name!r}, which has {size}"
                )
            if least > self.at_most.get(name, size):
                raise UsageError(
                    f"`at_least` {least} and `at_most` {self.at_most[name]} of group {name!r} "
                    "exclude each other"
                )

    def widths(self, group: ChannelGroup, granularity: int) -> tuple[int, ...]:
        """The widths that ``group`` may take; where its steps leave none, the one nearest."""
        widths = group.widths(granularity)
        if not group.prunable:
            return widths
        fixed = len(self.locked.get(group.id, ()))
        low = max(fixed, self.at_least.get(group.id, 0))
        high = max(low, self.at_most.get(group.id, group.size))
        inside = tuple(w for w in widths if low <= w <= high)
        if fixed and fixed not in inside:
            # what is locked need not lie on a step
            inside = (fixed, *inside) if low == fixed else inside
        return inside or (low if low else min(high, widths[0]),)


def build_problem(
    graph: ChannelGraph,
    scores: Scores,
    costs: CostModel,
    limit: float,
    granularity: int = 1,
    bounds: Bounds | None = None,
    *,
    depth: bool = False,
) -> Problem:
    """The allocation problem of ``graph``: a variable per group, a term per layer.

    With ``depth`` residual blocks may go: the groups inside of one may have width zero, all of them
    or none.
    """
    bounds = bounds or Bounds()
    blocks = graph.droppable if depth else {}
    inside = {group for groups in blocks.values() for group in groups}
    variables = []
    for group in graph.groups:
        widths = bounds.widths(group, granularity)
        if group.id in inside and not bounds.locked.get(group.id):
            least = bounds.at_least.get(group.id, 0)
            most = bounds.at_most.get(group.id, group.size)
            inner = {w for w in (0, *widths) if least <= w <= most}
            widths = tuple(sorted(inner)) or widths
        ranked: NDArray[np.float64] = np.zeros(group.size)
        if group.prunable and group.id in scores.by_group:
            values = scores.by_group[group.id].copy()
            fixed = list(bounds.locked.get(group.id, ()))
            values[fixed] = np.inf  # first in the ranking
            ranked = -np.sort(-values)
            ranked[: len(fixed)] = 0.0
        sums = np.concatenate([[0.0], np.cumsum(ranked)])
        variables.append(Variable(group.id, widths, tuple(float(sums[w]) for w in widths)))
    terms = [layer_term(layer, costs) for layer in graph.layers]
    together = TOGETHER * total(graph, {}, costs)
    for block, groups in blocks.items():
        terms += [together_term(block, *pair, together) for pair in pairwise(groups)]
    return Problem(tuple(variables), tuple(terms), limit, costs.constant)


def uniform(
    graph: ChannelGraph,
    costs: CostModel,
    fraction: float,
    granularity: int = 1,
    seed: int | None = None,
) -> ChannelPlan:
    """Every prunable group narrowed by one factor, the largest that costs ``fraction`` of dense.

    The first channels stay, or random ones of ``seed``. Raises InfeasibleError where even the
    smallest widths cost more.
    """
    budget = Budget("latency", fraction, relative=True, text=f"uniform widths at {fraction:.1%}")
    nothing = Scores({}, "none")
    chosen = allocate(graph, nothing, costs, budget, Uniform(), granularity=granularity)
    rng = None if seed is None else np.random.default_rng(seed)
    kept = {
        group.id: (np.arange(group.size) if rng is None else rng.permutation(group.size))[
            : chosen.widths[group.id]
        ].tolist()
        for group in graph.groups
    }
    return ChannelPlan.from_keep(graph, kept)
