"""Greedy allocation: always the narrowing that loses the least value per cost saved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunekit.allocation.solvers.factors import compile_graph
from prunekit.allocation.solvers.fill import Fill
from prunekit.allocation.solvers.problem import Problem, Solution, Status, relative_gap


@dataclass(frozen=True)
class Greedy:
    """From full widths down to the budget, every narrowing at its true cost.

    True means that both sides of every layer are narrowed at once. A group goes one width down at
    a time, or with ``jumps`` to any narrower width, which gets over steps that save nothing. The
    bound is the worth of everything.
    """

    jumps: bool = False

    def solve(self, problem: Problem) -> Solution:
        """The widths; ``infeasible`` where no narrowing saves any more above the budget."""
        problem.check()
        problem.single("greedy")
        graph = compile_graph(problem)
        fill = Fill(graph)
        full = np.array([len(values) - 1 for values in graph.values], dtype=np.int64)
        plan = fill.plan(full)
        fill.lower(plan, problem.budget, jumps=self.jumps, capped=False)
        widths = graph.widths(plan.choice)
        value, cost = problem.value(widths), problem.cost(widths)
        status: Status = "feasible" if cost <= problem.budget else "infeasible"
        bound = value if status == "infeasible" else sum(max(v.values) for v in problem.variables)
        gap = relative_gap(value, bound)
        return Solution(widths, value, cost, bound, gap, status, "greedy")
