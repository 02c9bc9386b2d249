"""Uniform allocation: every group narrowed by one factor, as people do by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prunekit.allocation.solvers.problem import Problem, Solution, Status, Variable, relative_gap


@dataclass(frozen=True)
class Uniform:
    """The largest common factor within the budget; each width is the allowed one nearest to it.

    Scores play no part. Costs are taken to rise with the factor; where they do not, the factor
    found is within the budget but may not be the largest. The bound is the worth of everything.
    """

    def solve(self, problem: Problem) -> Solution:
        """The widths; ``infeasible`` where even the least cost more."""
        problem.check()
        problem.single("uniform")
        steps = {
            (low + high) / 2 / variable.widths[-1]
            for variable in problem.variables
            for low, high in pairwise(variable.widths)
        }
        factors = [0.0, *(float(np.nextafter(step, 2.0)) for step in sorted(steps))]
        widths = _widths(problem, factors[0])
        cost = problem.cost(widths)
        status: Status = "feasible" if cost <= problem.budget else "infeasible"
        low, high = 0, len(factors)
        while status == "feasible" and high - low > 1:
            middle = (low + high) // 2
            tried = _widths(problem, factors[middle])
            price = problem.cost(tried)
            if price <= problem.budget:
                low, widths, cost = middle, tried, price
            else:
                high = middle
        value = problem.value(widths)
        bound = value if status == "infeasible" else sum(max(v.values) for v in problem.variables)
        gap = relative_gap(value, bound)
        return Solution(widths, value, cost, bound, gap, status, "uniform")


def _widths(problem: Problem, factor: float) -> dict[str, int]:
    return {variable.name: _nearest(variable, factor) for variable in problem.variables}


def _nearest(variable: Variable, factor: float) -> int:
    widths = np.array(variable.widths)
    return int(widths[np.argmin(np.abs(widths - factor * widths[-1]))])
