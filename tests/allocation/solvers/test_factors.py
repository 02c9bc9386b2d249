"""Terms compiled to a graph of factors: concatenations, shared sums, memory."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.allocation.solvers import (
    Joint,
    Problem,
    Term,
    Variable,
)
from prunekit.support.errors import UsageError
from support.problems import densenet121, lookup, optimum, resnet50


def test_the_order_of_concatenation_does_not_matter():
    problem = densenet121(0.5)
    turned = [
        Term(t.name, t.in_parts[::-1], t.in_fixed, t.out_parts, t.out_fixed, t.cost)
        for t in problem.terms
    ]
    mirrored = Problem(problem.variables, tuple(turned), problem.budget)
    assert Joint().solve(mirrored) == Joint().solve(problem)


def test_a_group_bound_by_two_sums_at_once():
    names = ("a", "b", "c", "d")
    sizes = ((2, 4), (1, 2, 3), (1, 2), (1, 2, 3, 4))
    variables = tuple(
        Variable(n, widths, tuple(float(w * w) for w in widths))
        for n, widths in zip(names, sizes, strict=True)
    )
    parts = tuple((n, 1) for n in names)
    terms = (
        Term("pair", parts[:1], 0, parts[2:3], 2, lookup(3, "rough")),
        Term("sums", parts, 0, (("a", 1), ("b", 2)), 2, lookup(5, "noise")),
    )
    for budget in np.arange(-2.0, 8.0, 0.5):
        problem = Problem(variables, terms, float(budget))
        best, _ = optimum(problem)
        solution = Joint(gap=0.0, iterations=400).solve(problem)
        assert solution.status == ("infeasible" if best is None else "optimal")
        assert best is None or solution.value == best


def test_groups_too_entangled_for_memory_are_refused(monkeypatch):
    monkeypatch.setattr("prunekit.allocation.solvers.elimination.LARGEST_TABLE", 1000)
    with pytest.raises(UsageError, match="use a coarser granularity"):
        Joint().solve(resnet50(0.5))
