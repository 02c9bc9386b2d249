"""Exact maximisation of value minus priced cost: max-sum variable elimination.

Links stay implicit: a node that one determines is eliminated through an index map, never through
a three-way table, unless two links bind the same node at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.allocation.solvers.factors import Graph, Index, Scope
from prunekit.allocation.solvers.problem import Array
from prunekit.support.errors import UsageError

LARGEST_TABLE = 2**25  # entries: 256 MiB
CHUNK = 2**15  # entries that stay in a core's cache while a maximum is taken


@dataclass(frozen=True)
class _Bucket:
    """What eliminating a node joins, and the nodes that remain.

    A factor's number is its place among the graph's tables, then among the results of earlier
    eliminations; it is -1 - link for a link that has to be spelled out as a table.
    """

    node: int
    factors: tuple[tuple[int, Scope], ...]
    resolver: int | None  # the link that determines the node, if one does
    scope: Scope
    size: float  # entries of the largest table left or needed
    work: float  # entries visited


@dataclass(frozen=True)
class _Step:
    """One elimination with its shapes and index maps worked out beforehand."""

    node: int
    factors: tuple[int, ...]
    scope: Scope
    shape: tuple[int, ...]  # over the scope
    axes: tuple[tuple[int, ...], ...]  # per factor: its axes, the node's first
    shapes: tuple[tuple[int, ...], ...]  # per factor: broadcastable to (node, *scope)
    present: tuple[tuple[bool, ...], ...]  # per factor: which of (node, *scope) it spans
    resolver: Index | None = None  # the node's index over the scope, when a link determines it
    barrier: Array | None = None  # minus infinity where no index fits
    gather: tuple[tuple[Index, ...], ...] = ()  # per factor: its indices over the scope

    def take(self, tables: dict[int, Array]) -> list[Array]:
        """Its factors, taken out of ``tables``, broadcastable to (node, *scope) if they join."""
        inputs = [tables.pop(factor) for factor in self.factors]
        if self.resolver is not None:
            return inputs
        return [
            np.ascontiguousarray(table.transpose(axes)).reshape(shape)
            for table, axes, shape in zip(inputs, self.axes, self.shapes, strict=True)
        ]

    def result(self, inputs: list[Array]) -> Array:
        """What is left when the node is gone, over the scope."""
        return _join_max(inputs, self.shape) if self.resolver is None else self.joint(inputs)

    def joint(self, inputs: list[Array]) -> Array:
        """The sum of its factors over (node, *scope), or the scope where a link gives the node."""
        if self.resolver is None:
            return np.asarray(sum(inputs[1:], np.broadcast_to(inputs[0], self.whole)))
        total = np.asarray(self.barrier)
        for table, at in zip(inputs, self.gather, strict=True):
            total = total + table[at]
        return np.broadcast_to(total, self.shape)

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of :meth:`joint`."""
        if self.resolver is not None:
            return self.shape
        return np.broadcast_shapes(*self.shapes, (1, *self.shape))

    def back(self, joint: Array, inputs: list[Array], k: int) -> Array:
        """The maximum of ``joint`` at each entry of factor ``k``."""
        if self.resolver is None:
            away = tuple(axis for axis, present in enumerate(self.present[k]) if not present)
            return self.unfold(joint.max(axis=away, keepdims=True), k)
        table = np.full(inputs[k].shape, -np.inf)
        at = tuple(np.broadcast_to(index, joint.shape) for index in self.gather[k])
        np.maximum.at(table, at, joint)
        return table

    def unfold(self, table: Array, k: int) -> Array:
        """Factor ``k`` with its own axes again, after :meth:`take`."""
        if self.resolver is not None:
            return table
        axes = self.axes[k]
        order = sorted(range(len(axes)), key=lambda axis: axes[axis])
        sizes = [n for n, present in zip(table.shape, self.present[k], strict=True) if present]
        return table.reshape(sizes).transpose(order)


class Elimination:
    """The elimination order and index maps of a graph; one ``maximise`` per multiplier."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._sizes = [len(node.widths) for node in graph.nodes]
        self._base: list[Scope] = [(i,) for i in range(len(graph.values))] + graph.scopes
        orders = [self._order(by_work) for by_work in (True, False)]
        order = min(orders, key=lambda buckets: sum(bucket.work for bucket in buckets))
        self.work = sum(bucket.work for bucket in order)
        spelled = {number for bucket in order for number, _ in bucket.factors if number < 0}
        self._spelled = {number: graph.links[-1 - number].table() for number in spelled}
        self._steps = [self._step(bucket) for bucket in order]

    def maximise(
        self,
        weight: float,
        prices: Sequence[float],
        ranges: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Index, float]:
        """The choice that maximises weight * value - prices * costs, and that maximum.

        ``prices`` has one number per resource. ``ranges`` restricts each variable to indices
        start <= i < stop. The constants of the graph are left out of the maximum.
        """
        graph = self.graph
        joined: list[list[Array]] = []
        tables = self._tables(weight, prices, ranges)
        best = 0.0
        for number, step in enumerate(self._steps, len(self._base)):
            inputs = step.take(tables)
            if step.resolver is None:
                inputs = _absorb(inputs)
            result = step.result(inputs)
            joined.append(inputs if step.resolver is None else [])
            if step.scope:
                tables[number] = result
            else:
                best += float(result)

        place = np.zeros(len(graph.nodes), dtype=np.int64)
        for step, inputs in zip(reversed(self._steps), reversed(joined), strict=True):
            chosen = place[list(step.scope)]
            if step.resolver is None:
                columns = [_column(table, chosen) for table in inputs]
                place[step.node] = int(np.argmax(np.sum(columns, axis=0)))
            else:
                place[step.node] = step.resolver[_clip(chosen, step.resolver.shape)]
        return place[: len(graph.values)], best

    def marginals(self, weight: float, prices: Sequence[float]) -> list[Array]:
        """Per variable, the maximum over all choices with each of its indices in turn.

        In the unit of :meth:`maximise`, whose maximum is the maximum of each. One pass forth, whose
        tables are kept, and one back: what a table is worth from outside is the maximum of all it
        was joined with, less itself.
        """
        tables = self._tables(weight, prices, None)
        taken: list[list[Array]] = []
        best, alone = 0.0, {}
        for number, step in enumerate(self._steps, len(self._base)):
            taken.append(step.take(tables))
            result = step.result(taken[-1])
            if step.scope:
                tables[number] = result
            else:
                alone[number] = float(result)
                best += float(result)
        count, base = len(self.graph.values), len(self._base)
        maxima: list[Array] = [np.zeros(0)] * count
        outside: dict[int, Array] = {}
        for number in reversed(range(base, base + len(self._steps))):
            step, inputs = self._steps[number - base], taken.pop()
            beyond = outside.pop(number) if step.scope else np.asarray(best - alone[number])
            joint = step.joint(inputs) + (beyond if step.resolver is not None else beyond[None])
            for k, factor in enumerate(step.factors):
                if factor >= base or 0 <= factor < count:
                    most = step.back(joint, inputs, k)
                    if factor < count:
                        maxima[factor] = most
                    else:
                        mine = step.unfold(inputs[k], k)
                        finite = np.isfinite(mine)
                        outside[factor] = np.where(
                            finite, most - np.where(finite, mine, 0), -np.inf
                        )
        return maxima

    @property
    def joint_size(self) -> float:
        """Entries of the largest table that :meth:`marginals` spells out."""
        return max((math.prod(step.whole) for step in self._steps), default=0)

    def _tables(
        self,
        weight: float,
        prices: Sequence[float],
        ranges: Sequence[tuple[int, int]] | None,
    ) -> dict[int, Array]:
        """Values, priced costs and links, by number."""
        graph = self.graph
        tables: dict[int, Array] = {}
        for i, value in enumerate(graph.values):
            start, stop = ranges[i] if ranges is not None else (0, len(value))
            tables[i] = np.full(len(value), -np.inf)
            tables[i][start:stop] = weight * value[start:stop]
        for i, scope in enumerate(graph.scopes, len(graph.values)):
            costs = zip(prices, graph.resources, strict=True)
            priced = [-price * tables_of[scope] for price, tables_of in costs if scope in tables_of]
            tables[i] = priced[0] if len(priced) == 1 else np.sum(priced, axis=0)
        return tables | self._spelled

    def _order(self, by_work: bool) -> list[_Bucket]:
        """Greedy order: always the node that is cheapest to eliminate (or leaves the least)."""
        factors = dict(enumerate(self._base))
        links = {i: link.scope for i, link in enumerate(self.graph.links)}
        buckets = {i: self._bucket(i, factors, links) for i in range(len(self._sizes))}
        order: list[_Bucket] = []
        while buckets:
            bucket = min(
                buckets.values(), key=lambda b: (b.work if by_work else b.size, b.size, b.node)
            )
            del buckets[bucket.node]
            for number, _ in bucket.factors:
                factors.pop(number, None)
            links = {i: scope for i, scope in links.items() if bucket.node not in scope}
            if bucket.scope:
                factors[len(self._base) + len(order)] = bucket.scope
            order.append(bucket)
            for i in bucket.scope:
                buckets[i] = self._bucket(i, factors, links)
        return order

    def _bucket(self, node: int, factors: dict[int, Scope], links: dict[int, Scope]) -> _Bucket:
        inside = [(i, scope) for i, scope in factors.items() if node in scope]
        bound = [(i, scope) for i, scope in links.items() if node in scope]
        scope = tuple(sorted({n for _, nodes in inside + bound for n in nodes} - {node}))
        spelled = [(-1 - i, nodes) for i, nodes in bound[1:]]
        sizes = [self._size(nodes) for _, nodes in spelled] + [self._size(scope)]
        work = sum(sizes) if bound else sizes[-1] * self._sizes[node]
        resolver = bound[0][0] if bound else None
        return _Bucket(node, (*inside, *spelled), resolver, scope, max(sizes), work)

    def _size(self, scope: Scope) -> float:
        return math.prod(float(self._sizes[i]) for i in scope)

    def _step(self, bucket: _Bucket) -> _Step:
        """Work out the shapes and index maps of one elimination."""
        if bucket.size > LARGEST_TABLE:
            raise UsageError(
                f"the groups hang together so that a table of {bucket.size:.1e} entries is needed "
                f"(at most {LARGEST_TABLE:.1e}); use a coarser granularity"
            )
        node, scope = bucket.node, bucket.scope
        numbers = tuple(number for number, _ in bucket.factors)
        shape = tuple(self._sizes[i] for i in scope)
        whole = (node, *scope)
        axes = tuple(
            tuple(nodes.index(i) for i in whole if i in nodes) for _, nodes in bucket.factors
        )
        shapes = tuple(
            tuple(self._sizes[i] if i in nodes else 1 for i in whole) for _, nodes in bucket.factors
        )
        present = tuple(tuple(i in nodes for i in whole) for _, nodes in bucket.factors)
        if bucket.resolver is None:
            return _Step(node, numbers, scope, shape, axes, shapes, present)
        first, second, index = self.graph.links[bucket.resolver].resolve(node)
        if first > second:
            first, second, index = second, first, index.T
        index = index.reshape([self._sizes[i] if i in (first, second) else 1 for i in scope])
        grid = dict(zip(scope, np.ogrid[tuple(slice(n) for n in shape)], strict=True))
        grid[node] = np.maximum(index, 0)
        gather = tuple(tuple(grid[i] for i in nodes) for _, nodes in bucket.factors)
        barrier = np.where(index < 0, -np.inf, 0.0)
        return _Step(node, numbers, scope, shape, axes, shapes, present, index, barrier, gather)


def _clip(chosen: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A position in an array that has length one along the axes it does not depend on."""
    return tuple(int(i) if n > 1 else 0 for i, n in zip(chosen, shape, strict=True))


def _column(table: Array, chosen: Index) -> Array:
    """A table along its first axis, at a position in the others."""
    at: tuple[slice | int, ...] = (slice(None), *_clip(chosen, table.shape[1:]))
    return table[at]


def _absorb(tables: list[Array]) -> list[Array]:
    """Add every table into a larger one that spans it, so that fewer are joined."""
    kept: list[Array] = []
    for table in sorted(tables, key=lambda t: -t.size):
        for i, other in enumerate(kept):
            if np.broadcast_shapes(other.shape, table.shape) == other.shape:
                kept[i] = other + table
                break
        else:
            kept.append(table)
    return kept


def _join_max(tables: list[Array], shape: tuple[int, ...]) -> Array:
    """The maximum over the first axis of the tables' sum."""
    if len(tables) == 1:
        return np.asarray(tables[0].max(axis=0))
    length = tables[0].shape[0]
    chunk = max(1, CHUNK // math.prod(shape))
    best = np.full(shape, -np.inf)
    for start in range(0, length, chunk):
        total = tables[0][start : start + chunk]
        for table in tables[1:]:
            total = total + table[start : start + chunk]
        np.maximum(best, total.max(axis=0), out=best)
    return best
