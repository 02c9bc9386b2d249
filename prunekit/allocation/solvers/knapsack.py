"""HALP's knapsack: every group priced at the margin of its own output (arXiv 2210.06659)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunekit.allocation.solvers.problem import Array, Problem, Solution, Status, Term, relative_gap
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class Knapsack:
    """Dynamic programming over a budget cut into ``steps`` cells, costs rounded up to them.

    Its model prices a group by the layers that write it, with their in-widths held at
    ``problem.start``; what a narrower group saves in the next layer is not seen. The plan that is
    best in the model therefore tends to cost less than the budget, and with costs that fall as
    widths grow it may cost more.
    """

    steps: int = 2000

    def solve(self, problem: Problem) -> Solution:
        """The model's best plan at its true cost; ``feasible`` when that is within the budget.

        Where even the cheapest plan exceeds the budget in the model, every group gets its least
        width. The model proves no bound: ``bound`` is the sum of the groups' largest values.
        Raises UsageError when a value or cost is not a finite number.
        """
        problem.check()
        problem.single("knapsack")
        if self.steps < 1:
            raise UsageError(f"`steps` is {self.steps}; the least is 1")
        prices, fixed = marginal_prices(problem)
        values = [np.asarray(v.values, dtype=np.float64) for v in problem.variables]
        chosen = choose(values, prices, problem.budget - fixed, self.steps)
        if chosen is None:
            chosen = [0] * len(values)
        widths = {v.name: v.widths[i] for v, i in zip(problem.variables, chosen, strict=True)}
        value, cost = problem.value(widths), problem.cost(widths)
        bound = max(value, float(sum(v.max() for v in values)))
        gap = relative_gap(value, bound)
        status: Status = "feasible" if cost <= problem.budget else "infeasible"
        return Solution(widths, value, cost, bound, gap, status, "knapsack")


def marginal_prices(problem: Problem) -> tuple[list[Array], float]:
    """What each group's layers cost at every width of the group, and the cost of the rest.

    In-widths stay at the present ones, but for a layer whose out-width is its in-width
    (depthwise, norm), where both move. A layer written by several groups is charged to each for
    what it changes from the present, and once for the present itself.
    """
    start = problem.start
    if start is None:
        start = {v.name: v.widths[-1] for v in problem.variables}
    prices = {v.name: np.zeros(len(v.widths)) for v in problem.variables}
    widths = {v.name: np.asarray(v.widths, dtype=np.int64) for v in problem.variables}
    fixed = problem.constant
    for term in problem.terms:
        present = term.at(start)
        fixed += present
        for name in dict.fromkeys(name for name, _ in term.out_parts):
            price = _along(term, name, widths[name], start)
            if not (math.isfinite(present) and np.isfinite(price).all()):
                raise UsageError(
                    f"the cost of `{term.name}` is not finite at some width of `{name}`; "
                    "every cost must be a finite number"
                )
            prices[name] += price - present
    if not math.isfinite(fixed):
        raise UsageError(f"the cost at the present widths is {fixed}; every cost must be finite")
    return [prices[v.name] for v in problem.variables], fixed


def _along(term: Term, name: str, widths: NDArray[np.int64], start: Mapping[str, int]) -> Array:
    """The term's cost while one group that it writes takes each width."""
    cout = _width(term.out_parts, term.out_fixed, name, widths, start)
    cin = np.asarray(term.in_fixed + sum(r * start[n] for n, r in term.in_parts))
    if term.in_parts == term.out_parts and term.in_fixed == term.out_fixed:
        cin = cout
    return np.broadcast_to(np.asarray(term.cost(cin, cout), dtype=np.float64), widths.shape)


def _width(
    parts: tuple[tuple[str, int], ...],
    fixed: int,
    name: str,
    widths: NDArray[np.int64],
    start: Mapping[str, int],
) -> NDArray[np.int64]:
    """A width while ``name`` ranges over ``widths`` and the rest stay."""
    others = fixed + sum(repeat * start[part] for part, repeat in parts if part != name)
    return others + sum(repeat for part, repeat in parts if part == name) * widths


def choose(values: list[Array], prices: list[Array], budget: float, steps: int) -> list[int] | None:
    """One index per group, of the greatest total value at a total price within the budget.

    A price counts as its excess over the group's least price, rounded up to a whole number of
    cells; None when the least prices alone exceed the budget. A width is worth all bundles up to
    it, so choosing one width per group is the 0-1 knapsack with the ordering rule.
    """
    slack = budget - sum(float(price.min()) for price in prices)
    if slack < 0:
        return None
    best = np.zeros(steps + 1)  # by cells spent at most
    picks: list[NDArray[np.int64]] = []
    spent: list[NDArray[np.int64]] = []
    for value, price in zip(values, prices, strict=True):
        cells = _cells(price - price.min(), slack, steps)
        total = np.full(steps + 1, -np.inf)
        pick = np.zeros(steps + 1, dtype=np.int64)
        for i in np.lexsort((price, -value)):  # of equals, the cheapest stays
            if cells[i] > steps:
                continue
            offer = best[: steps + 1 - cells[i]] + value[i]
            better = offer > total[cells[i] :]
            total[cells[i] :][better] = offer[better]
            pick[cells[i] :][better] = i
        best = total
        picks.append(pick)
        spent.append(cells)
    left = steps
    chosen = []
    for picked, cost in zip(reversed(picks), reversed(spent), strict=True):
        chosen.append(int(picked[left]))
        left -= int(cost[chosen[-1]])
    return chosen[::-1]


def _cells(excess: Array, slack: float, steps: int) -> NDArray[np.int64]:
    """Whole cells that cover an excess; steps + 1 for one that never fits."""
    if slack == 0:
        return np.where(excess > 0, steps + 1, 0)
    # a hair over a whole number is rounding, not a price
    cells = np.ceil(np.minimum(excess / slack, 2.0) * steps - 1e-9)
    return np.asarray(np.minimum(cells, steps + 1), dtype=np.int64)
