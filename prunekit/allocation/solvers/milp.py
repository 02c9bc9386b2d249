"""The joint problem as a mixed-integer program, for the cross-check."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from prunekit.allocation.solvers.factors import Graph, Index, compile_graph
from prunekit.allocation.solvers.fill import Fill
from prunekit.allocation.solvers.problem import Array, Problem, Solution, Status, relative_gap
from prunekit.support.errors import UsageError

LARGEST = 200_000
"""Variables of a program that is still worth a try."""
MARGINS = (0.0, 2e-6, 1e-5)
"""HiGHS holds a budget to about a millionth of its largest cost; a plan over it is solved again."""
ROUNDING = 1e-12
PRECISION = 1e-6
"""The gap that HiGHS closes at best."""


@dataclass(frozen=True)
class Milp:
    """HiGHS, by branch and cut, over one binary per width.

    Two widths that share a cost table, and the parts of a sum with their total, get one variable
    per pair, whose sums along each side are the binaries (the local polytope). Any number of
    budgets. For small problems: a table of n x m widths is n x m variables.
    """

    seconds: float = 60.0
    gap: float = 1e-9

    def solve(self, problem: Problem) -> Solution:
        """The best plan, ``optimal`` when HiGHS proved it within ``gap``.

        Raises UsageError when the program is too large, or ended without a plan in time.
        """
        problem.check()
        graph = compile_graph(problem)
        if not graph.nodes:
            return _nothing_to_choose(problem, graph)
        program = _Program(graph)
        if program.size > LARGEST:
            raise UsageError(
                f"the mixed-integer program has {program.size} variables, more than {LARGEST}; "
                "use the solver joint"
            )
        budgets = np.array([problem.budget, *(limit.budget for limit in problem.limits)])
        worth = max(float(np.abs(program.value).sum()), 1e-300)
        dual = -np.inf
        over: list[Index] = []
        for margin in MARGINS:
            result = milp(
                -program.value / worth,
                integrality=program.binary,
                bounds=Bounds(0, 1),
                constraints=program.constraints(budgets, margin),
                options={"time_limit": self.seconds, "mip_rel_gap": self.gap},
            )
            if result.x is None:
                break
            if not over:  # with a margin it would be no bound
                dual = worth * float(result.mip_dual_bound)
            choice = np.array([int(np.argmax(result.x[part])) for part in program.choices])
            widths = graph.widths(choice)
            if problem.fits(widths):
                return self._solution(problem, graph, widths, dual)
            over.append(choice)
        least = {v.name: v.widths[0] for v in problem.variables}
        for widths in (*_repaired(problem, graph, over), least):
            if problem.fits(widths):
                return self._solution(problem, graph, widths, dual)
        if result.x is None and result.status != 2:
            raise UsageError(f"HiGHS found no plan within {self.seconds:g} s; use the solver joint")
        widths = least
        value = problem.value(widths)
        return Solution(widths, value, problem.cost(widths), value, 0.0, "infeasible", "milp")

    def _solution(
        self, problem: Problem, graph: Graph, widths: dict[str, int], dual: float
    ) -> Solution:
        value = problem.value(widths)
        most = sum(max(v.values) for v in problem.variables)
        bound = max(value, graph.fixed_value - dual if np.isfinite(dual) else most)
        gap = relative_gap(value, bound)
        status: Status = "optimal" if gap <= max(self.gap, PRECISION) else "feasible"
        return Solution(widths, value, problem.cost(widths), bound, gap, status, "milp")


def _repaired(problem: Problem, graph: Graph, over: list[Index]) -> Iterator[dict[str, int]]:
    """Plans over the budget by no more than HiGHS allows, lowered under it."""
    fill = Fill(graph)
    noise = 1e-9 * (abs(problem.budget) + abs(graph.fixed_costs[0]))
    for limit in (problem.budget, problem.budget - noise):
        for choice in over:
            lowered = fill.repair(choice, limit)
            if lowered is not None:
                yield graph.widths(fill.improve(lowered, limit))


def _nothing_to_choose(problem: Problem, graph: Graph) -> Solution:
    widths = graph.widths(np.zeros(0, dtype=np.int64))
    value = problem.value(widths)
    status: Status = "optimal" if problem.fits(widths) else "infeasible"
    return Solution(widths, value, problem.cost(widths), value, 0.0, status, "milp")


class _Program:
    """Columns and equations of a graph; the nodes' binaries come first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        starts = np.cumsum([0, *(len(node.widths) for node in graph.nodes)])
        self.nodes = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
        self.choices = self.nodes[: len(graph.values)]
        self.size = int(starts[-1])
        self._rows: list[tuple[np.ndarray, np.ndarray, float]] = []
        for node in self.nodes:
            self._rows.append((node, np.ones(len(node)), 1.0))
        self._pairs: dict[tuple[int, int], np.ndarray] = {}
        for scope in graph.scopes:
            if len(scope) == 2:
                self._pair(scope[0], scope[1])
        for link in graph.links:
            pair = self._pair(link.left, link.right)
            total = link.resolve(link.total)[2]
            pair = pair if link.left < link.right else pair.T
            for at, column in enumerate(self.nodes[link.total]):
                members = pair[total == at]
                columns = np.concatenate([members, [column]])
                self._rows.append((columns, np.r_[np.ones(len(members)), -1.0], 0.0))
        self.binary = np.zeros(self.size, dtype=np.int64)
        self.binary[: int(starts[-1])] = 1
        self.value = np.zeros(self.size)
        for node, values in zip(self.choices, graph.values, strict=True):
            self.value[node] = values

    def _pair(self, first: int, second: int) -> np.ndarray:
        """One variable per pair of two nodes' widths; the smaller node is the first axis."""
        first, second = min(first, second), max(first, second)
        if (first, second) not in self._pairs:
            left, right = self.nodes[first], self.nodes[second]
            made = self.size + np.arange(len(left) * len(right)).reshape(len(left), len(right))
            self.size += made.size
            self._pairs[first, second] = made
            for column, row in zip(left, made, strict=True):
                self._rows.append((np.r_[row, column], np.r_[np.ones(len(row)), -1.0], 0.0))
            for column, row in zip(right, made.T, strict=True):
                self._rows.append((np.r_[row, column], np.r_[np.ones(len(row)), -1.0], 0.0))
        return self._pairs[first, second]

    def constraints(self, budgets: Array, margin: float) -> list[LinearConstraint]:
        """Every node has one width, pairs agree with their nodes, and the budgets hold.

        With ``margin`` to spare, in parts of the largest cost.
        """
        rows = np.concatenate([np.full(len(c), n) for n, (c, _, _) in enumerate(self._rows)])
        columns = np.concatenate([c for c, _, _ in self._rows])
        values = np.concatenate([v for _, v, _ in self._rows])
        right = np.array([r for *_, r in self._rows])
        shape = (len(self._rows), self.size)
        limits = [LinearConstraint(coo_array((values, (rows, columns)), shape), right, right)]
        for resource, budget in enumerate(budgets):
            cost = np.zeros(self.size)
            for scope, table in self.graph.resources[resource].items():
                at = self.nodes[scope[0]] if len(scope) == 1 else self._pairs[scope[0], scope[1]]
                cost[at] += table
            fixed = self.graph.fixed_costs[resource]
            left = budget - fixed
            if np.isfinite(left):  # sums in another order round otherwise
                left += ROUNDING * (abs(budget) + abs(fixed))
            scale = max(1e-300, float(np.abs(cost).max()))
            if np.isfinite(left):
                limits.append(
                    LinearConstraint(cost[None, :] / scale, -np.inf, left / scale - margin)
                )
        return limits
