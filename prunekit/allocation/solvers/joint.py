"""Joint allocation: every layer priced by its in- and out-width at once, with a proved bound."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from prunekit.allocation.solvers import several
from prunekit.allocation.solvers.elimination import Elimination
from prunekit.allocation.solvers.factors import Graph, Index, compile_graph
from prunekit.allocation.solvers.fill import Fill
from prunekit.allocation.solvers.problem import Problem, Solution, Status, relative_gap
from prunekit.support.errors import UsageError

ROUNDING = 1e-12  # relative: smaller differences between sums of floats mean nothing
TINY = 1e-60  # prices below and above its inverse are not worth a try


REDUCIBLE = 2**24  # entries of a table, 128 MiB, up to which it is spelled out to drop widths
POLISHED = 24  # regions whose ends are improved; by then the best plan is found as a rule
LONGER = 20  # times as many multipliers, at most, where dropped widths make them cheap


@dataclass(frozen=True)
class Joint:
    """Lagrangian search, exact for each multiplier by variable elimination.

    Tangents at two multipliers give the next one. Where duality leaves a gap, widths are dropped
    that no plan better than the best one can have (their best Lagrangian proves it), what is left
    is split, and both halves are searched. Stops once the gap between the best plan and the bound
    is at most ``gap``, or after the work of ``iterations`` multipliers. Deterministic.
    """

    gap: float = 1e-4
    iterations: int = 60

    def solve(self, problem: Problem) -> Solution:
        """The best plan found, never over the budget; ``infeasible`` only when that is proved.

        With several budgets there is no splitting, and ``infeasible`` means that none was found. An
        infeasible solution's bound and gap say nothing: they are its value and zero. Raises
        UsageError when a value or cost is not a finite number, or when the groups hang together
        too much to be solved at this granularity.
        """
        problem.check()
        if not self.gap >= 0:
            raise UsageError(f"`gap` is {self.gap}; the least is 0")
        if self.iterations < 1:
            raise UsageError(f"`iterations` is {self.iterations}; the least is 1")
        if problem.limits:
            return several.solve(problem, self.gap, self.iterations)
        search = _Search(problem, self.gap, self.iterations)
        cheapest = search.evaluate(0.0, 1.0)[0]
        if not search.offer(cheapest):
            widths = search.graph.widths(cheapest.choice)
            cost = problem.cost(widths)
            return Solution(
                widths, cheapest.value, cost, cheapest.value, 0.0, "infeasible", "joint"
            )
        bound = search.run(cheapest)
        search.polish(search.best)
        best = search.best
        widths = search.graph.widths(best.choice)
        value = problem.value(widths)
        bound = max(bound, value)
        gap = relative_gap(value, bound)
        status: Status = "optimal" if gap <= self.gap else "feasible"
        return Solution(widths, value, problem.cost(widths), bound, gap, status, "joint")


@dataclass(frozen=True)
class _Point:
    """A choice with its value and cost."""

    choice: Index
    value: float
    cost: float


@dataclass
class _Region:
    """Ranges of indices, one per variable, and what is known of the best plan inside.

    ``over`` and ``under`` maximise value - price * cost at some price each, the one beyond the
    budget and the other within it.
    """

    ranges: tuple[tuple[int, int], ...]
    bound: float
    price: float
    lowest: float = 0.0
    """The price that gave the bound."""
    over: _Point | None = None
    under: _Point | None = None

    def holds(self, point: _Point | None) -> bool:
        """Whether a point lies inside."""
        return point is not None and all(
            start <= i < stop for i, (start, stop) in zip(point.choice, self.ranges, strict=True)
        )


class _Search:
    """Best-first branch and bound over regions of widths; the root region is everything."""

    def __init__(self, problem: Problem, gap: float, iterations: int) -> None:
        self.problem = problem
        self.graph: Graph = compile_graph(problem)
        self.best = _Point(np.zeros(0, dtype=np.int64), -math.inf, math.inf)
        self._gap = gap
        self._left = iterations
        self._elimination = Elimination(self.graph)
        self._fill = Fill(self.graph)
        self._polished: set[bytes] = set()

    def run(self, cheapest: _Point) -> float:
        """Search until the gap or the iterations are used up; the proved bound."""
        whole = tuple((0, len(value)) for value in self.graph.values)
        root = _Region(whole, math.inf, 0.0, under=cheapest)
        point, root.bound = self.evaluate(1.0, 0.0)
        if self.offer(point):
            return root.bound
        root.over = point
        self._tighten(root)
        self._polish_ends(root)
        inner = self._reduced(root)
        if inner is not None:
            return inner

        heap = [(-root.bound, 0, root)]
        count = 0
        while heap and self._left > 0 and relative_gap(self.best.value, -heap[0][0]) > self._gap:
            if heap[0][2].over is None or heap[0][2].under is None:
                break  # nothing to split by
            region = heapq.heappop(heap)[2]
            for child in self._split(region):
                self._tighten(child)
                if child.bound > self.best.value and count < POLISHED:
                    self._polish_ends(child)
                if child.bound > self.best.value:
                    count += 1
                    heapq.heappush(heap, (-child.bound, count, child))
        return -heap[0][0] if heap else self.best.value

    def evaluate(
        self, weight: float, price: float, ranges: tuple[tuple[int, int], ...] | None = None
    ) -> tuple[_Point, float]:
        """The maximiser of weight * value - price * cost, and the bound on value it proves."""
        choice, best = self._elimination.maximise(weight, (price,), ranges)
        point = _Point(choice, self.graph.value(choice), self.graph.cost(choice))
        spent = price * (self.problem.budget - self.graph.fixed_costs[0]) if price else 0.0
        return point, best + self.graph.fixed_value + spent

    def offer(self, point: _Point) -> bool:
        """Keep a point if it is the best so far; whether it fits the budget."""
        fits = self.problem.cost(self.graph.widths(point.choice)) <= self.problem.budget
        order = (point.value, -point.cost)
        if fits and order > (self.best.value, -self.best.cost):
            self.best = point
        return fits

    def polish(self, point: _Point) -> None:
        """Offer a point's local improvement, repaired first if it is over the budget."""
        if point.choice.tobytes() in self._polished:
            return
        self._polished.add(point.choice.tobytes())
        budget = self.problem.budget
        for margin in (0.0, 1e3 * ROUNDING * (abs(budget) + abs(self.graph.fixed_costs[0]))):
            # tables summed in another order may round under the budget what is above it
            choice = self._fill.repair(point.choice, budget - margin)
            if choice is None:
                return
            choice = self._fill.improve(choice, budget - margin)
            self._polished.add(choice.tobytes())
            if self.offer(_Point(choice, self.graph.value(choice), self.graph.cost(choice))):
                return

    def _polish_ends(self, region: _Region) -> None:
        for point in (region.under, region.over):
            if point is not None:
                self.polish(point)

    def _tighten(self, region: _Region) -> None:
        """Lower a region's bound to its Lagrangian dual, or to where it no longer matters."""
        budget, step = self.problem.budget, 2.0
        while self._left > 0 and relative_gap(self.best.value, region.bound) > self._gap:
            over, under = region.over, region.under
            if over is not None and under is not None:
                if over.cost <= under.cost:
                    return  # apart by rounding alone
                price = max(0.0, (over.value - under.value) / (over.cost - under.cost))
            elif over is not None:
                price = (region.price or 1.0) * step
            else:
                price = region.price / step
                price = price if price > TINY * abs(self.best.value) else 0.0
            if price > 1 / TINY:
                return
            step = min(step * step, 256.0)
            self._left -= 1
            point, bound = self.evaluate(1.0, price, region.ranges)
            if bound < region.bound:
                region.bound, region.lowest = bound, price
            region.price = price
            fits = self.offer(point)
            if over is not None and under is not None:
                line = over.value + price * (budget - over.cost)
                scale = abs(bound) + abs(price * budget) + abs(price * over.cost)
                if bound <= line + ROUNDING * scale:
                    return
            if fits:
                region.under = point
                if price == 0:
                    return
            else:
                region.over = point

    def _reduced(self, root: _Region) -> float | None:
        """The bound after a search without the widths that are proved to be no better.

        None where the gap is closed already, nothing was left out, or the proof takes too much.
        """
        if self._left < 1 or relative_gap(self.best.value, root.bound) <= self._gap:
            return None
        elimination, price = self._elimination, root.lowest
        if not math.isfinite(self.best.value) or elimination.joint_size > REDUCIBLE:
            return None
        budget = self.problem.budget - self.graph.fixed_costs[0]
        constant = self.graph.fixed_value + price * budget
        margin = ROUNDING * (abs(root.bound) + abs(price * self.problem.budget))
        allowed: dict[str, Index] = {}
        for variable, most in enumerate(elimination.marginals(1.0, (price,))):
            stays = most + constant > self.best.value - margin
            stays[self.best.choice[variable]] = True
            allowed[self.graph.names[variable]] = np.flatnonzero(stays)
        if all(len(a) == len(v) for a, v in zip(allowed.values(), self.graph.values, strict=True)):
            return None
        variables = tuple(
            replace(
                v,
                widths=tuple(v.widths[i] for i in allowed[v.name]),
                values=tuple(v.values[i] for i in allowed[v.name]),
            )
            if v.name in allowed
            else v
            for v in self.problem.variables
        )
        inner = _Search(replace(self.problem, variables=variables), self._gap, 0)
        cheaper = elimination.work / max(inner._elimination.work, 1.0)
        inner._left = int(self._left * min(LONGER, max(1.0, cheaper)))
        start = inner.graph.choice(self.graph.widths(self.best.choice))
        inner.offer(_Point(start, inner.graph.value(start), inner.graph.cost(start)))
        bound = min(root.bound, inner.run(inner.evaluate(0.0, 1.0)[0]))
        choice = self.graph.choice(inner.graph.widths(inner.best.choice))
        self.offer(_Point(choice, self.graph.value(choice), self.graph.cost(choice)))
        return max(bound, self.best.value)

    def _split(self, region: _Region) -> list[_Region]:
        """Two regions that part the point over the budget from the one within it."""
        over, under = region.over, region.under
        if over is None or under is None:
            return []
        weights = [
            abs(float(value[i] - value[j]))
            for value, i, j in zip(self.graph.values, over.choice, under.choice, strict=True)
        ]
        differ = np.flatnonzero(over.choice != under.choice)
        variable = max(differ, key=lambda i: (weights[i], -i))
        middle = (int(over.choice[variable]) + int(under.choice[variable]) + 1) // 2
        start, stop = region.ranges[variable]
        children = []
        for part in ((start, middle), (middle, stop)):
            ranges = (*region.ranges[:variable], part, *region.ranges[variable + 1 :])
            child = _Region(ranges, region.bound, region.price)
            child.over = over if child.holds(over) else None
            child.under = under if child.holds(under) else None
            children.append(child)
        return children
