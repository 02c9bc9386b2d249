"""An allocation problem as a factor graph: nodes, cost tables over them, links between them.

A node stands for a group with a choice, or for a partial sum of a concatenation. A cost table
spans one or two nodes. A link says ``total = left + right``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunekit.allocation.solvers.problem import Array, Problem, Term
from prunekit.support.errors import UsageError

Index = NDArray[np.int64]
Parts = tuple[tuple[int, int], ...]
"""(node, repeat) pairs."""
Scope = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A choice variable (one part: itself, once) or a sum of several; widths ascend."""

    widths: Index
    parts: Parts


@dataclass(frozen=True)
class Link:
    """Node ``total`` is the sum of ``left`` and ``right``, in the widths given here."""

    left: int
    right: int
    total: int
    left_widths: Index
    right_widths: Index
    total_widths: Index

    @property
    def scope(self) -> Scope:
        """Its three nodes."""
        return (self.left, self.right, self.total)

    def resolve(self, node: int) -> tuple[int, int, Index]:
        """The other two nodes and, for each pair of their indices, that of ``node`` (-1: none)."""
        left, right, total = self.left_widths, self.right_widths, self.total_widths
        if node == self.total:
            return self.left, self.right, _find(total, left[:, None] + right[None, :])
        if node == self.left:
            return self.right, self.total, _find(left, total[None, :] - right[:, None])
        return self.left, self.total, _find(right, total[None, :] - left[:, None])

    def table(self) -> Array:
        """Zero where the sum holds and minus infinity elsewhere, axes in ``scope`` order."""
        total = np.arange(len(self.total_widths))
        met = self.resolve(self.total)[2][:, :, None] == total[None, None, :]
        return np.where(met, 0.0, -np.inf)


def _find(widths: Index, wanted: Index) -> Index:
    """Where each wanted width stands among ascending ``widths``; -1 where it does not."""
    at = np.minimum(np.searchsorted(widths, wanted), len(widths) - 1)
    return np.where(widths[at] == wanted, at, -1).astype(np.int64)


@dataclass
class Graph:
    """A problem as tables over nodes; the first ``len(names)`` nodes are the choices.

    ``resources`` holds the cost tables of every budget, ``fixed_costs`` what does not depend on
    the choice; the first is the problem's own.
    """

    names: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    resources: list[dict[Scope, Array]] = field(default_factory=list)
    fixed_widths: dict[str, int] = field(default_factory=dict)
    fixed_value: float = 0.0
    fixed_costs: list[float] = field(default_factory=list)

    @property
    def scopes(self) -> list[Scope]:
        """The nodes of every table, of all resources."""
        return list(dict.fromkeys(scope for tables in self.resources for scope in tables))

    def place(self, choice: Index) -> Index:
        """The index of every node, sums included, when the choices are ``choice``."""
        place = np.empty(len(self.nodes), dtype=np.int64)
        place[: len(choice)] = choice
        for link in self.links:
            width = link.left_widths[place[link.left]] + link.right_widths[place[link.right]]
            place[link.total] = np.searchsorted(link.total_widths, width)
        return place

    def value(self, choice: Index) -> float:
        """Total value of a choice."""
        return self.fixed_value + sum(float(v[i]) for v, i in zip(self.values, choice, strict=True))

    def cost(self, choice: Index, resource: int = 0) -> float:
        """Total cost of a choice, but for rounding."""
        place = self.place(choice)
        tables = self.resources[resource].items()
        return self.fixed_costs[resource] + sum(float(t[tuple(place[list(s)])]) for s, t in tables)

    def widths(self, choice: Index) -> dict[str, int]:
        """The width of every group, those without a choice included."""
        chosen = zip(self.names, self.nodes, choice, strict=False)
        return self.fixed_widths | {name: int(node.widths[i]) for name, node, i in chosen}

    def choice(self, widths: Mapping[str, int]) -> Index:
        """The index of every group's width; the other way round than :meth:`widths`."""
        chosen = zip(self.names, self.nodes, strict=False)
        places = [int(np.searchsorted(node.widths, widths[name])) for name, node in chosen]
        return np.array(places, dtype=np.int64)


def compile_graph(problem: Problem) -> Graph:
    """Evaluate every term once, vectorised, and sum the terms that span the same nodes."""
    terms = [problem.terms, *(limit.terms for limit in problem.limits)]
    graph = Graph(fixed_costs=[problem.constant, *(limit.constant for limit in problem.limits)])
    number: dict[str, int] = {}
    for variable in problem.variables:
        if len(variable.widths) == 1:
            graph.fixed_widths[variable.name] = variable.widths[0]
            graph.fixed_value += variable.values[0]
            continue
        number[variable.name] = len(graph.nodes)
        graph.names.append(variable.name)
        widths = np.asarray(variable.widths, dtype=np.int64)
        graph.nodes.append(Node(widths, ((len(graph.nodes), 1),)))
        graph.values.append(np.asarray(variable.values, dtype=np.float64))

    pairs = [
        [
            (
                _linear(term.in_parts, term.in_fixed, number, graph.fixed_widths),
                _linear(term.out_parts, term.out_fixed, number, graph.fixed_widths),
            )
            for term in own
        ]
        for own in terms
    ]
    known = _add_sums(graph, [parts for own in pairs for pair in own for parts, _, _ in pair])
    for resource, (own, sides) in enumerate(zip(terms, pairs, strict=True)):
        costs: dict[Scope, Array] = {}
        for term, (left, right) in zip(own, sides, strict=True):
            scope, table = _tabulate(term, left, right, known, graph.nodes)
            if scope:
                costs[scope] = costs.get(scope, 0.0) + table
            else:
                graph.fixed_costs[resource] += float(table)
        graph.resources.append(costs)
    return graph


def _linear(
    parts: Sequence[tuple[str, int]], fixed: int, number: dict[str, int], known: dict[str, int]
) -> tuple[Parts, int, int]:
    """A width as ``scale * (sum over parts) + offset``, with single-width groups folded in."""
    offset = fixed + sum(repeat * known[name] for name, repeat in parts if name in known)
    repeats: Counter[int] = Counter()
    for name, repeat in parts:
        if name in number:
            repeats[number[name]] += repeat
    scale = math.gcd(*repeats.values()) if repeats else 1
    return tuple((node, r // scale) for node, r in sorted(repeats.items())), scale, offset


def _add_sums(graph: Graph, sums: list[Parts]) -> dict[Parts, int]:
    """Chain nodes for all sums; the parts most often read come first, so that prefixes meet."""
    known = {node.parts: i for i, node in enumerate(graph.nodes)}
    wanted = list(dict.fromkeys(parts for parts in sums if len(parts) > 1))
    readers = Counter(part for parts in wanted for part in parts)
    nodes: dict[Parts, int] = {}
    for parts in wanted:
        chain = tuple(sorted(parts, key=lambda part: (-readers[part], part)))
        left, repeat = chain[0]
        left_widths = repeat * graph.nodes[left].widths
        for length in range(2, len(chain) + 1):
            prefix = chain[:length]
            right, repeat = chain[length - 1]
            if prefix not in nodes:
                right_widths = repeat * graph.nodes[right].widths
                widths = np.unique(left_widths[:, None] + right_widths[None, :])
                nodes[prefix] = len(graph.nodes)
                graph.links.append(
                    Link(left, right, nodes[prefix], left_widths, right_widths, widths)
                )
                graph.nodes.append(Node(widths, prefix))
            left = nodes[prefix]
            left_widths = graph.nodes[left].widths
        known[parts] = left
    return known


def _tabulate(
    term: Term,
    into: tuple[Parts, int, int],
    out: tuple[Parts, int, int],
    known: dict[Parts, int],
    nodes: list[Node],
) -> tuple[Scope, Array]:
    """The term's costs over its nodes, in ascending order of node."""
    scope = tuple(sorted({known[parts] for parts, _, _ in (into, out) if parts}))
    widths: list[Index] = []
    for parts, scale, offset in (into, out):
        width = np.asarray(offset, dtype=np.int64)
        if parts:
            shape = [1] * len(scope)
            shape[scope.index(known[parts])] = -1
            width = width + scale * nodes[known[parts]].widths.reshape(shape)
        widths.append(width.reshape((1,) * (len(scope) - width.ndim) + width.shape))
    table = np.asarray(term.cost(widths[0], widths[1]), dtype=np.float64)
    table = np.broadcast_to(table, tuple(len(nodes[i].widths) for i in scope))
    if not np.isfinite(table).all():
        at = tuple(np.argwhere(~np.isfinite(table))[0])
        cin, cout = (int(np.broadcast_to(w, table.shape)[at]) for w in widths)
        raise UsageError(
            f"the cost of `{term.name}` is {table[at]} at in-width {cin} and out-width {cout}; "
            "every cost must be a finite number"
        )
    return scope, table
