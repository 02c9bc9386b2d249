"""A budget of memory: weights and the activations that are alive at once, in every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from prunekit.allocation.costs import WeightBytes
from prunekit.allocation.solvers import Limit, Problem, Solution, Term
from prunekit.allocation.terms import activation_term, layer_term
from prunekit.core.graph import ChannelGraph, Side

Solve = Callable[[Problem], Solution]


@dataclass(frozen=True)
class MemoryBudget:
    """At most ``bytes`` in fp32 in every step of a forward, as :meth:`ChannelGraph.memory` counts.

    The peak is a maximum over steps, and each step a sum over layers and activations: a budget like
    any other. Few steps ever matter, so that one is added when a plan breaks it.
    """

    graph: ChannelGraph
    bytes: float
    name: str = "memory"

    def solve(self, problem: Problem, solve: Solve, *, main: bool = False) -> Solution:
        """``solve`` within the problem's budgets and this one.

        With ``main`` the problem's own terms and budget are of the weights alone, and activations
        join them. A round either ends or adds a step. The bound of the last one bounds the whole:
        the steps left out could only allow less.
        """
        steps = [self.graph.peak(self.graph.dense_widths).step]
        while True:
            solution = solve(self._asked(problem, steps, main))
            peak = self.graph.peak(solution.widths)
            if solution.status == "infeasible" or peak.step in steps:
                return solution
            if self.graph.memory(solution.widths) <= self.bytes:
                return solution
            steps.append(peak.step)

    def _asked(self, problem: Problem, steps: list[int], main: bool) -> Problem:
        weights = tuple(layer_term(layer, WeightBytes()) for layer in self.graph.layers)
        limits = []
        for step in steps:
            terms, constant = self._alive(step)
            name = f"{self.name} in step {step}"
            limits.append(Limit(name, (*weights, *terms), self.bytes, constant))
        if not main:
            return replace(problem, limits=(*problem.limits, *limits))
        terms, constant = self._alive(steps[0])
        return replace(
            problem,
            terms=(*problem.terms, *terms),
            constant=problem.constant + constant,
            limits=(*problem.limits, *limits[1:]),
        )

    def _alive(self, step: int) -> tuple[list[Term], float]:
        """Activations of one step: those that widths change, and bytes of the others."""
        by_sides: dict[tuple[Side, ...], int] = {}
        for buffer in self.graph.buffers:
            if buffer.first <= step <= buffer.last:
                by_sides[buffer.sides] = by_sides.get(buffer.sides, 0) + buffer.bytes
        fixed = by_sides.pop((), 0)
        return [activation_term(sides, size) for sides, size in by_sides.items()], float(fixed)
