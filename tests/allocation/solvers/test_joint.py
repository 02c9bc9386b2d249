"""The joint solver against brute force, and on network-sized problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation.solvers import (
    Joint,
    Knapsack,
    Milp,
    Problem,
    Term,
    Variable,
)
from prunekit.allocation.solvers.joint import _Search
from prunekit.allocation.solvers.problem import relative_gap
from support.problems import TIMES, densenet121, optimum, problems, resnet50


@settings(max_examples=300 * TIMES, deadline=None)
@given(problems(), st.sampled_from([0.0, 1e-4, 0.05]), st.sampled_from([3, 400]))
def test_joint_against_brute_force(problem, gap, iterations):
    solution = Joint(gap=gap, iterations=iterations).solve(problem)
    best, least = optimum(problem)
    assert solution.cost == problem.cost(solution.widths)
    assert solution.value == problem.value(solution.widths)
    if best is None:
        assert solution.status == "infeasible"
        assert solution.cost == least
        return
    assert solution.status in ("optimal", "feasible")
    assert solution.cost <= problem.budget
    tolerance = 1e-9 * max(abs(best), 1.0)
    assert solution.bound >= best - tolerance
    assert solution.value >= best - solution.gap * abs(solution.bound) - tolerance
    assert solution.gap == pytest.approx(
        (solution.bound - solution.value) / max(abs(solution.bound), 1e-12)
    )
    assert (solution.status == "optimal") == (solution.gap <= gap)
    if iterations == 400:
        assert solution.status == "optimal"


def test_a_duality_gap_is_closed_by_dropping_widths():
    """Ripples on every layer's cost: tangents alone leave half a percent."""
    rng = np.random.default_rng(3)
    widths = tuple(range(8, 129, 8))
    variables = tuple(
        Variable(f"g{i}", widths, tuple(np.cumsum(-np.sort(-rng.random(16))).tolist()))
        for i in range(12)
    )

    def rippled(cin, cout):
        return cin * np.ceil(cout / 64) * 64 * (1 + 0.05 * np.sin(0.7 * cin + 1.3 * cout)) / 1e4

    terms = tuple(
        Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 12}", 1),), 0, rippled) for i in range(12)
    )
    full = Problem(variables, terms, math.inf).cost({v.name: 128 for v in variables})
    problem = Problem(variables, terms, 0.3 * full)
    search = _Search(problem, 1e-5, 60)
    cheapest = search.evaluate(0.0, 1.0)[0]
    search.offer(cheapest)
    bound = search.run(cheapest)
    assert relative_gap(search.best.value, bound) <= 1e-5
    reference = Milp().solve(problem)
    assert search.best.value == pytest.approx(reference.value, rel=2e-5)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_joint_on_a_resnet50(share):
    problem = resnet50(share)
    solution = Joint().solve(problem)
    assert solution.cost <= problem.budget
    assert solution.gap <= 1e-3
    assert solution == Joint().solve(problem)
    assert solution.value > Knapsack().solve(problem).value


def test_joint_shares_the_prefixes_of_a_densenet121():
    problem = densenet121(0.5)
    solution = Joint().solve(problem)
    assert solution.cost <= problem.budget
    assert solution.gap <= 1e-3
