"""The greedy solver: within the budget, and over steps that save nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation.solvers import (
    Greedy,
    Joint,
    Problem,
    Term,
    Variable,
)
from support.problems import TIMES, optimum, problems


@settings(max_examples=200 * TIMES, deadline=None)
@given(problems(), st.booleans())
def test_greedy_lands_within_the_budget_or_where_nothing_saves(problem, jumps):
    solution = Greedy(jumps=jumps).solve(problem)
    best, _ = optimum(problem)
    assert solution.cost == problem.cost(solution.widths)
    assert solution.value == problem.value(solution.widths)
    assert (solution.status == "feasible") == (solution.cost <= problem.budget)
    if solution.status == "feasible":
        assert solution.value <= best
        assert solution.bound >= best
        return
    for variable in problem.variables:
        place = variable.widths.index(solution.widths[variable.name])
        lower = variable.widths[:place] if jumps else variable.widths[max(0, place - 1) : place]
        for width in lower:
            other = problem.cost(solution.widths | {variable.name: width})
            assert other >= solution.cost - 1e-9


def test_greedy_with_jumps_gets_over_steps_that_save_nothing():
    steps = tuple(range(8, 65, 8))
    values = tuple(float(w) for w in steps)
    a, b = Variable("a", steps, values), Variable("b", steps, tuple(1.05 * v for v in values))
    flat = Term("a", (("a", 1),), 0, (), 1, lambda i, o: 1.0 * (-(-i // 32)) * 32 * o)
    even = Term("b", (("b", 1),), 0, (), 1, lambda i, o: 1.0 * i * o)
    problem = Problem((a, b), (flat, even), 96.0)
    plain, jumps, joint = (s.solve(problem) for s in (Greedy(), Greedy(jumps=True), Joint()))
    assert plain.value < jumps.value == joint.value
