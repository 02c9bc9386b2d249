"""One factor for every group."""

from __future__ import annotations

import pytest

from prunekit.allocation.solvers import (
    Problem,
    Term,
    Uniform,
    Variable,
)


def test_uniform_narrows_every_group_by_the_largest_factor_that_fits():
    def area(cin, cout):
        return (cin * cout).astype(float)

    variables = (
        Variable("a", (4, 8, 12, 16), (1.0, 2.0, 3.0, 4.0)),
        Variable("b", (8, 16, 24, 32), (5.0, 6.0, 7.0, 8.0)),
        Variable("fixed", (3,), (0.0,)),
    )
    terms = (
        Term("first", (("fixed", 1),), 0, (("a", 1),), 0, area),
        Term("second", (("a", 1),), 0, (("b", 1),), 0, area),
    )

    def cost(a, b):
        return 3 * a + a * b

    steps = [(4, 8), (8, 16), (12, 24), (16, 32)]
    for budget in range(int(cost(4, 8)), cost(16, 32) + 20, 7):
        found = Uniform().solve(Problem(variables, terms, budget))
        best = max(step for step in steps if cost(*step) <= budget)
        assert (found.widths["a"], found.widths["b"]) == best
        assert found.widths["fixed"] == 3
        assert found.cost == cost(*best)
        assert found.status == "feasible"
        assert found.bound == 12 >= found.value == best[0] / 4 + best[1] / 8 + 4
        assert found.gap == pytest.approx(1 - found.value / 12)
    least = Uniform().solve(Problem(variables, terms, cost(4, 8) - 1))
    assert (least.status, least.cost) == ("infeasible", cost(4, 8))
