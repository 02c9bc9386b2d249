"""The joint problem under several budgets at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from prunekit.allocation.solvers.elimination import Elimination
from prunekit.allocation.solvers.factors import Graph, Index, compile_graph
from prunekit.allocation.solvers.fill import Fill, Plan
from prunekit.allocation.solvers.problem import Array, Problem, Solution, Status, relative_gap

PRICEY = 1e6
"""The most a budget's price may be, in the worth of everything per budget."""


def solve(problem: Problem, gap: float, iterations: int) -> Solution:
    """The best plan found within all budgets, with a proved bound.

    The dual: for prices of the budgets, elimination gives the best plan and a bound; the next
    prices are where the planes of all plans found so far meet lowest (Kelley's cutting planes).
    Every plan on the way is repaired into the budgets and improved by moves of one and two groups.
    """
    return _Several(problem, gap).run(iterations)


@dataclass(frozen=True)
class _Cut:
    """A plan's value, and by how much it is over each budget, in parts of the budget's scale."""

    value: float
    over: Array


class _Several:
    def __init__(self, problem: Problem, gap: float) -> None:
        self.problem, self.gap = problem, gap
        self.graph: Graph = compile_graph(problem)
        self.elimination = Elimination(self.graph)
        self.count = 1 + len(problem.limits)
        self.fills = [Fill(self.graph, k) for k in range(self.count)]
        budgets = [problem.budget, *(limit.budget for limit in problem.limits)]
        self.budgets = np.array(budgets)
        full = np.array([len(v) - 1 for v in self.graph.values], dtype=np.int64)
        costs = self.costs(full)
        # so that prices are of one size, whatever the units
        self.scale = np.maximum(np.abs(costs), 1e-12)
        self.worth = max(abs(self.graph.value(full)), 1e-12)
        self.best: Index | None = None
        self.best_value = -np.inf
        self.least: tuple[float, Index] = (np.inf, full)

    def costs(self, choice: Index) -> Array:
        return np.array([self.graph.cost(choice, k) for k in range(self.count)])

    def run(self, iterations: int) -> Solution:
        finite = np.isfinite(self.budgets)
        prices, bound = np.zeros(self.count), np.inf
        cuts: list[_Cut] = []
        # the cheapest plan of every budget: without them the first prices run off
        for k in np.flatnonzero(finite):
            weights = np.zeros(self.count)
            weights[k] = 1 / self.scale[k]
            choice, _ = self.elimination.maximise(0.0, weights.tolist())
            cuts.append(self.cut(choice))
            self.offer(choice)
        for _ in range(iterations):
            choice, best = self.elimination.maximise(1.0, (prices / self.scale).tolist())
            cut = self.cut(choice)
            dual = best + self.graph.fixed_value + self.spend(prices, finite)
            bound = min(bound, dual)
            cuts.append(cut)
            self.offer(choice)
            if relative_gap(self.best_value, bound) <= self.gap:
                break
            following, lowest = self.master(cuts, finite)
            if lowest >= bound - 1e-12 * self.worth or np.allclose(
                following, prices, rtol=1e-12, atol=1e-12 * self.worth
            ):
                break
            prices = following
        return self.solution(bound)

    def spend(self, prices: Array, finite: Array) -> float:
        """What the budgets themselves are worth at these prices."""
        free = np.where(finite, self.budgets, 0.0) - np.array(self.graph.fixed_costs)
        return float(np.sum(np.where(finite, prices / self.scale * free, 0.0)))

    def cut(self, choice: Index) -> _Cut:
        over = (self.costs(choice) - self.budgets) / self.scale
        return _Cut(self.graph.value(choice), np.where(np.isfinite(over), over, -1.0))

    def master(self, cuts: list[_Cut], finite: Array) -> tuple[Array, float]:
        """The prices at which the highest of all planes value - prices * over is lowest."""
        worth = self.worth
        rows = np.array([[*(-cut.over), -1.0] for cut in cuts])
        right = np.array([-cut.value / worth for cut in cuts])
        top = [PRICEY if f else 0.0 for f in finite]
        result = linprog(
            [*np.zeros(self.count), 1.0],
            A_ub=rows,
            b_ub=right,
            bounds=[*((0.0, t) for t in top), (None, None)],
        )
        if result.x is None:
            return np.zeros(self.count), np.inf
        return worth * result.x[:-1], worth * float(result.x[-1])

    def offer(self, choice: Index) -> None:
        """Repair, improve, keep if best."""
        plans = [fill.plan(choice) for fill in self.fills]
        if not self.repair(plans):
            return
        self.improve(plans)
        filled = plans[0].choice
        value = self.graph.value(filled)
        if value > self.best_value and self.problem.fits(self.graph.widths(filled)):
            self.best, self.best_value = filled.copy(), value

    def over(self, plans: list[Plan]) -> Array:
        """By how much each budget is overrun, in parts of its scale; negative is room."""
        return np.asarray((np.array([p.cost for p in plans]) - self.budgets) / self.scale)

    def repair(self, plans: list[Plan]) -> bool:
        """Down into the budgets, the least value lost per excess taken away first."""
        while (over := self.over(plans)).max() > 0:
            worst = float(np.maximum(over, 0).sum())
            if worst < self.least[0]:
                self.least = worst, plans[0].choice.copy()
            best: tuple[float, int, int] | None = None
            for variable in range(len(self.graph.values)):
                gain, saved = plans[0].gain(variable), 0.0
                for k, (fill, plan) in enumerate(zip(self.fills, plans, strict=True)):
                    change = fill.moves(plan, variable)[1] / self.scale[k]
                    saved = saved + max(over[k], 0.0) - np.maximum(over[k] + change, 0.0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    rate = np.where(saved > 1e-12, gain / saved, -np.inf)
                to = int(np.argmax(rate))
                if rate[to] > -np.inf and (best is None or rate[to] > best[0]):
                    best = (float(rate[to]), variable, to)
            if best is None:
                return False
            self.apply(plans, {best[1]: best[2]})
        return True

    def improve(self, plans: list[Plan]) -> None:
        """Single moves and exchanges of two, as long as they gain within all budgets."""
        moved = True
        while moved:
            moved = self.single(plans)
            if not moved:
                moved = self.exchange(plans)

    def single(self, plans: list[Plan]) -> bool:
        best: tuple[float, int, int] | None = None
        room = -self.over(plans)
        for variable in range(len(self.graph.values)):
            gain = plans[0].gain(variable)
            fits, price = gain > plans[0].threshold, np.zeros(len(gain))
            for k, (fill, plan) in enumerate(zip(self.fills, plans, strict=True)):
                change = fill.moves(plan, variable)[1] / self.scale[k]
                fits = fits & (change <= room[k])
                price = price + np.maximum(change, 0) / max(room[k], 1e-12)
            if fits.any():
                rate = np.where(fits, gain / np.maximum(price, 1e-12), -np.inf)
                to = int(np.argmax(rate))
                if best is None or rate[to] > best[0]:
                    best = (float(rate[to]), variable, to)
        if best is None:
            return False
        self.apply(plans, {best[1]: best[2]})
        return True

    def exchange(self, plans: list[Plan]) -> bool:
        moved = False
        for u in range(len(self.graph.values)):
            for v in range(u + 1, len(self.graph.values)):
                gain = plans[0].gain(u)[:, None] + plans[0].gain(v)[None, :]
                if gain.max() <= plans[0].threshold:
                    continue
                room = -self.over(plans)
                for k, (fill, plan) in enumerate(zip(self.fills, plans, strict=True)):
                    change = fill.both(plan, u, v) / self.scale[k]
                    gain = np.where(change <= room[k], gain, -np.inf)
                at = int(np.argmax(gain))
                if gain.flat[at] > plans[0].threshold:
                    self.apply(plans, {u: at // gain.shape[1], v: at % gain.shape[1]})
                    moved = True
        return moved

    def apply(self, plans: list[Plan], moves: dict[int, int]) -> None:
        for fill, plan in zip(self.fills, plans, strict=True):
            fill.apply(plan, moves)

    def solution(self, bound: float) -> Solution:
        problem = self.problem
        if self.best is None:
            widths = self.graph.widths(self.least[1])
            value = problem.value(widths)
            return Solution(widths, value, problem.cost(widths), value, 0.0, "infeasible", "joint")
        widths = self.graph.widths(self.best)
        value = problem.value(widths)
        bound = max(bound, value)
        gap = relative_gap(value, bound)
        status: Status = "optimal" if gap <= self.gap else "feasible"
        return Solution(widths, value, problem.cost(widths), bound, gap, status, "joint")
