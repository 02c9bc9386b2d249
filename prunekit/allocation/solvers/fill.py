"""Local improvement of a plan: single changes and pair exchanges at their true cost."""

from __future__ import annotations

import numpy as np

from prunekit.allocation.solvers.factors import Graph, Index, Scope
from prunekit.allocation.solvers.problem import Array


class Fill:
    """Moves of one or two variables; only the tables that a move touches are evaluated.

    Of one resource, the problem's own unless told.
    """

    def __init__(self, graph: Graph, resource: int = 0) -> None:
        self._graph, self._resource = graph, resource
        self._repeats = [dict(node.parts) for node in graph.nodes]
        count = len(graph.values)
        self._touched: list[list[tuple[Scope, Array]]] = [[] for _ in range(count)]
        self._near: list[set[int]] = [set() for _ in range(count)]
        for scope, table in graph.resources[resource].items():
            inside = {variable for node in scope for variable in self._repeats[node]}
            for variable in inside:
                self._touched[variable].append((scope, table))
                self._near[variable] |= inside

    def improve(self, choice: Index, limit: float) -> Index:
        """Raise the value of a plan until no single move and no pair fits under ``limit``."""
        plan = self.plan(choice)
        while self._singles(plan, limit) or self._pairs(plan, limit):
            pass
        return plan.choice

    def plan(self, choice: Index) -> Plan:
        """A plan at ``choice``, for moves."""
        return Plan(self._graph, choice, self._resource)

    def repair(self, choice: Index, limit: float) -> Index | None:
        """Lower a plan under ``limit``, the least value lost per cost first; None if it sticks."""
        plan = self.plan(choice)
        return plan.choice if self.lower(plan, limit) else None

    def lower(self, plan: Plan, limit: float, jumps: bool = True, capped: bool = True) -> bool:
        """As :meth:`repair`, in place; whether the limit was reached.

        Without ``jumps`` a variable goes one width down at a time. With ``capped`` what is saved
        past the limit earns nothing, so that no move goes deeper than needed.
        """
        while plan.cost > limit:
            best: tuple[float, int, int] | None = None
            for variable in range(len(plan.choice)):
                gain, cost = self.moves(plan, variable)
                saved = np.minimum(-cost, plan.cost - limit) if capped else -cost
                with np.errstate(divide="ignore", invalid="ignore"):
                    rate = gain / saved
                rate = np.where(cost < -plan.noise, rate, -np.inf)
                if not jumps:
                    below = plan.choice[variable] - 1
                    rate = np.where(np.arange(len(rate)) == below, rate, -np.inf)
                to = int(np.argmax(rate))
                if rate[to] > -np.inf and (best is None or rate[to] > best[0]):
                    best = (float(rate[to]), variable, to)
            if best is None:
                return False
            self.apply(plan, {best[1]: best[2]})
        return True

    def _singles(self, plan: Plan, limit: float) -> bool:
        """The best moves of one variable, one after another; true if any was made."""
        moved = False
        while True:
            best: tuple[tuple[float, float], int, int] | None = None
            for variable in range(len(plan.choice)):
                gain, cost = self.moves(plan, variable)
                better = (gain > plan.threshold) | ((gain >= 0) & (cost < -plan.noise))
                fits = better & (cost <= limit - plan.cost)
                if not fits.any():
                    continue
                # what costs nothing goes first, then the best rate
                with np.errstate(divide="ignore", invalid="ignore"):
                    rate = np.where(cost > 0, gain / cost, np.inf)
                    rate = np.where(fits, rate, -np.inf)
                to = max(np.flatnonzero(fits), key=lambda i: (rate[i], gain[i], -cost[i], -i))
                key = (float(rate[to]), float(gain[to]))
                if best is None or key > best[0]:
                    best = (key, variable, int(to))
            if best is None:
                return moved
            self.apply(plan, {best[1]: best[2]})
            moved = True

    def _pairs(self, plan: Plan, limit: float) -> bool:
        """One pass over all pairs, each exchanged at its best; true if any was."""
        moved = False
        for u in range(len(plan.choice)):
            for v in range(u + 1, len(plan.choice)):
                values = (self._joint if v in self._near[u] else self._apart)(plan, u, v, limit)
                if values is not None:
                    self.apply(plan, {u: values[0], v: values[1]})
                    moved = True
        return moved

    def _joint(self, plan: Plan, u: int, v: int, limit: float) -> tuple[int, int] | None:
        """The best exchange of two variables that share a table."""
        gain = plan.gain(u)[:, None] + plan.gain(v)[None, :]
        if gain.max() <= plan.threshold:
            return None
        cost = self.delta(plan, (u, v))
        gain = np.where(cost <= limit - plan.cost, gain, -np.inf)
        at = int(np.argmax(gain))
        if gain.flat[at] <= plan.threshold:
            return None
        return at // gain.shape[1], at % gain.shape[1]

    def _apart(self, plan: Plan, u: int, v: int, limit: float) -> tuple[int, int] | None:
        """The best exchange of two variables whose costs add up."""
        gain, cost = self.moves(plan, u)
        rank, costs, gains = self._frontier(plan, v)
        at = np.searchsorted(costs, limit - plan.cost - cost, side="right") - 1
        total = np.where(at >= 0, gain + gains[np.maximum(at, 0)], -np.inf)
        to = int(np.argmax(total))
        if total[to] <= plan.threshold:
            return None
        return to, int(rank[at[to]])

    def moves(self, plan: Plan, variable: int) -> tuple[Array, Array]:
        """What every width of a variable adds to value and cost."""
        if variable not in plan.costs:
            plan.costs[variable] = self.delta(plan, (variable,))
        return plan.gain(variable), plan.costs[variable]

    def both(self, plan: Plan, u: int, v: int) -> Array:
        """What every pair of widths of two variables adds to the cost."""
        if v in self._near[u]:
            return self.delta(plan, (u, v))
        return self.moves(plan, u)[1][:, None] + self.moves(plan, v)[1][None, :]

    def _frontier(self, plan: Plan, variable: int) -> tuple[Index, Array, Array]:
        """By ascending cost: the best width so far, the cost, the gain so far."""
        if variable not in plan.frontiers:
            gain, cost = self.moves(plan, variable)
            order = np.lexsort((-gain, cost))
            best = np.maximum.accumulate(gain[order])
            record = np.flatnonzero(np.r_[True, best[1:] > best[:-1]])
            plan.frontiers[variable] = (order[record], cost[order][record], best[record])
        return plan.frontiers[variable]

    def delta(self, plan: Plan, moving: tuple[int, ...]) -> Array:
        """The change of cost over the grid of the moving variables' widths."""
        nodes = self._graph.nodes
        shift = [nodes[v].widths - nodes[v].widths[plan.choice[v]] for v in moving]
        grid = np.ix_(*shift)
        own = np.ix_(*(np.arange(len(s)) for s in shift))
        total = np.zeros([len(s) for s in shift])
        seen: set[Scope] = set()
        for variable in moving:
            for scope, table in self._touched[variable]:
                if scope in seen:
                    continue
                seen.add(scope)
                at = tuple(self._at(plan, node, moving, grid, own) for node in scope)
                total += table[at] - table[tuple(plan.place[list(scope)])]
        return total

    def _at(
        self,
        plan: Plan,
        node: int,
        moving: tuple[int, ...],
        grid: tuple[Index, ...],
        own: tuple[Index, ...],
    ) -> Index:
        """Indices of a node while the moving variables range over their widths."""
        if node in moving:
            return own[moving.index(node)]
        repeats = self._repeats[node]
        if not any(v in repeats for v in moving):
            return np.asarray(plan.place[node])
        widths = self._graph.nodes[node].widths
        width = widths[plan.place[node]]
        for variable, move in zip(moving, grid, strict=True):
            if variable in repeats:
                width = width + repeats[variable] * move
        return np.asarray(np.searchsorted(widths, width))

    def apply(self, plan: Plan, moves: dict[int, int]) -> None:
        """Move variables to widths, by index."""
        for variable, to in moves.items():
            plan.choice[variable] = to
            for other in self._near[variable] | {variable}:
                plan.costs.pop(other, None)
                plan.frontiers.pop(other, None)
        plan.refresh()


class Plan:
    """A choice under improvement, with what its moves are known to cost."""

    def __init__(self, graph: Graph, choice: Index, resource: int = 0) -> None:
        self._graph, self._resource = graph, resource
        self.choice = choice.copy()
        self.costs: dict[int, Array] = {}
        self.frontiers: dict[int, tuple[Index, Array, Array]] = {}
        largest = sum(float(np.abs(value).max()) for value in graph.values)
        self.threshold = 1e-12 * largest  # a smaller gain is rounding
        largest = sum(float(np.abs(table).max()) for table in graph.resources[resource].values())
        self.noise = 1e-12 * largest  # a smaller saving is rounding
        self.refresh()

    def refresh(self) -> None:
        """Recompute what depends on the whole choice, afresh so that rounding cannot pile up."""
        self.place = self._graph.place(self.choice)
        self.cost = self._graph.cost(self.choice, self._resource)

    def gain(self, variable: int) -> Array:
        """What every width of a variable adds to the value."""
        value = self._graph.values[variable]
        return np.asarray(value - value[self.choice[variable]])
