"""The integer program against brute force, under one budget and two."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from prunekit.allocation.solvers import (
    Greedy,
    Joint,
    Knapsack,
    Limit,
    Milp,
    Problem,
    Term,
    Uniform,
    Variable,
)
from prunekit.allocation.solvers.factors import compile_graph
from prunekit.support.errors import UsageError
from support.problems import TIMES, conv, group, optimum, problems


@settings(max_examples=150 * TIMES, deadline=None)
@given(problems())
def test_milp_agrees_with_brute_force(problem):
    solution = Milp().solve(problem)
    best, _ = optimum(problem)
    if best is None:
        assert solution.status == "infeasible"
        return
    # HiGHS holds constraints to a millionth of their scale
    assert solution.cost <= problem.budget + 1e-5
    if solution.cost <= problem.budget:
        assert solution.value == pytest.approx(best, abs=1e-6)
    assert solution.bound >= best - 1e-6


def test_milp_takes_a_budget_that_is_met_to_the_last_digit():
    choice = Variable("g", (8, 11), (0.3, 0.4))
    terms = tuple(
        Term(f"t{i}", (), 1, (), 1, lambda _i, _o, c=c: c) for i, c in enumerate((0.1, 0.1, 0.3))
    )
    bare = Problem((choice,), terms, 0.0, constant=0.1)
    problem = replace(bare, budget=bare.cost({"g": 8}))
    assert compile_graph(problem).fixed_costs[0] > problem.budget  # added up in another order
    found = Milp().solve(problem)
    assert (found.status, found.widths) == ("optimal", {"g": 11})


def test_milp_agrees_on_a_network_under_two_budgets():
    rng = np.random.default_rng(3)
    variables = tuple(group(f"g{i}", 64, rng, step=16) for i in range(5))
    names = [v.name for v in variables]
    terms = tuple(conv(f"c{i}", [names[i]], [names[i + 1]], 3, 14, rng) for i in range(4))
    weights = tuple(
        Term(t.name, t.in_parts, 0, t.out_parts, 0, lambda i, o: 9.0 * i * o) for t in terms
    )
    full = {v.name: v.widths[-1] for v in variables}
    bare = Problem(variables, terms, math.inf)
    limit = Limit("parameters", weights, 0.4 * sum(t.at(full) for t in weights))
    problem = Problem(variables, terms, 0.5 * bare.cost(full), limits=(limit,))
    joint, exact = Joint(iterations=100).solve(problem), Milp().solve(problem)
    assert exact.status == "optimal"
    assert problem.fits(joint.widths)
    assert joint.value == pytest.approx(exact.value, rel=5e-3)
    assert joint.bound >= exact.value * (1 - 1e-9)
    for solver in (Knapsack(), Uniform(), Greedy()):
        with pytest.raises(UsageError, match="takes one budget only, not parameters too"):
            solver.solve(problem)
