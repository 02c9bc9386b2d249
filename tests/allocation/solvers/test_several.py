"""Several budgets at once, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation.solvers import (
    Joint,
    Limit,
    Milp,
    Problem,
    Term,
    Variable,
)
from support.problems import EIGHTH, TIMES, lookup, plans, problems


@st.composite
def limited(draw):
    """A problem with one or two further budgets."""
    first = draw(problems())
    limits = []
    for number in range(draw(st.integers(1, 2))):
        names = [v.name for v in first.variables]
        terms = tuple(
            Term(
                f"l{number}{i}",
                ((draw(st.sampled_from(names)), 1),),
                draw(st.integers(0, 2)),
                ((draw(st.sampled_from(names)), 1),),
                0,
                lookup(draw(st.integers(0, 50)), draw(st.sampled_from(["product", "stairs"]))),
            )
            for i in range(draw(st.integers(1, 3)))
        )
        other = Problem(first.variables, terms, 0.0)
        costs = [other.cost(widths) for widths in plans(first)]
        share = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
        budget = min(costs) + share * (max(costs) - min(costs))
        budget = math.floor(budget / EIGHTH) * EIGHTH if 0 < share < 1 else budget
        limits.append(Limit(f"limit {number}", terms, budget))
    return Problem(first.variables, first.terms, first.budget, first.constant, limits=tuple(limits))


@settings(max_examples=200 * TIMES, deadline=None)
@given(limited())
def test_several_budgets_against_brute_force(problem):
    solution = Joint(iterations=60).solve(problem)
    best = max((problem.value(w) for w in plans(problem) if problem.fits(w)), default=None)
    if best is None:
        assert solution.status == "infeasible"
        return
    if solution.status == "infeasible":  # none found is no proof, with several budgets
        return
    assert problem.fits(solution.widths)
    tolerance = 1e-7 * max(abs(best), 1.0)
    assert solution.value <= best + tolerance
    assert solution.bound >= best - tolerance
    assert solution.value >= best - solution.gap * abs(solution.bound) - tolerance


def test_several_budgets_are_mostly_met_at_their_best():
    """How often the heuristic part finds the optimum, and whether it ever misses a plan."""
    found = hits = missed = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        variables = tuple(
            Variable(f"g{i}", (1, 2, 3, 4), tuple(np.cumsum(-np.sort(-rng.random(4))).tolist()))
            for i in range(4)
        )
        terms = tuple(
            Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 4}", 1),), 0, lookup(seed, "rough"))
            for i in range(4)
        )
        size = tuple(
            Term(f"s{i}", ((f"g{i}", 1),), 0, (), 1, lambda i, o: 1.0 * i * o) for i in range(4)
        )
        full = {v.name: 4 for v in variables}
        bare = Problem(variables, terms, math.inf)
        least = min(bare.cost(w) for w in plans(bare))
        budget = least + 0.5 * (bare.cost(full) - least)
        problem = Problem(variables, terms, budget, limits=(Limit("size", size, 11.0),))
        best = max((problem.value(w) for w in plans(problem) if problem.fits(w)), default=None)
        if best is None:
            continue
        found += 1
        solution = Joint().solve(problem)
        missed += solution.status == "infeasible"
        hits += solution.status != "infeasible" and solution.value >= best - 1e-9
    assert found > 100
    assert missed == 0
    assert hits >= 0.9 * found


def test_several_budgets_do_not_depend_on_the_size_of_scores():
    rng = np.random.default_rng(5)
    found = []
    for scale in (1.0, 1e-12):
        variables = tuple(
            Variable(f"g{i}", (1, 2, 3, 4), tuple((scale * v).tolist()))
            for i, v in enumerate(np.cumsum(-np.sort(-rng.random((4, 4))), axis=1))
        )
        rng = np.random.default_rng(5)
        cost = lookup(1, "product")
        terms = tuple(
            Term(f"t{i}", ((f"g{i}", 1),), 0, ((f"g{(i + 1) % 4}", 1),), 0, cost) for i in range(4)
        )
        size = Limit("size", (Term("s", (("g0", 1), ("g1", 1)), 0, (), 1, cost),), 0.5)
        problem = Problem(variables, terms, 4.0, limits=(size,))
        found += [Joint().solve(problem), Milp().solve(problem)]
    assert len({tuple(s.widths.values()) for s in found}) == 1
    assert found[2].gap == pytest.approx(found[0].gap, abs=1e-9)
