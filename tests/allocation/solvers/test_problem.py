"""What every solver is asked: refused problems, budgets without limits, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunekit.allocation.solvers import (
    Joint,
    Knapsack,
    Problem,
    Term,
    Variable,
)
from prunekit.support.errors import UsageError
from support.problems import resnet50, term


@pytest.mark.parametrize(
    "solver", [Joint(gap=-1.0), Joint(gap=math.nan), Joint(iterations=0), Knapsack(steps=0)]
)
def test_settings_out_of_range(solver):
    with pytest.raises(UsageError, match="the least is"):
        solver.solve(Problem((), (), 1.0))


@pytest.mark.parametrize("solver", [Joint(), Knapsack()])
def test_no_variables_and_no_terms(solver):
    assert solver.solve(Problem((), (), 1.0, 0.5)).widths == {}
    assert solver.solve(Problem((), (), 1.0, 1.5)).status == "infeasible"


def test_an_unlimited_budget_keeps_everything():
    problem = resnet50(1.0)
    unlimited = Problem(problem.variables, problem.terms, math.inf)
    for solver in (Joint(), Knapsack()):
        assert solver.solve(unlimited).widths == {v.name: v.widths[-1] for v in problem.variables}


def test_among_equal_values_the_cheaper_plan():
    a = Variable("a", (1, 2, 3), (1.0, 1.0, 1.0))
    term = Term("t", (("a", 1),), 0, (), 1, lambda i, o: np.where(i == 2, 0.0, 1.0 * i * o))
    solution = Joint().solve(Problem((a,), (term,), 9.0))
    assert solution.widths == {"a": 2}


A = Variable("a", (1, 2), (1.0, 2.0))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem((A,), (), math.nan), "`budget` is nan"),
        (Problem((A, A), (), 1.0), "variable `a` is given twice"),
        (Problem((A,), (term((("b", 1),)),), 1.0), "term `conv` reads `b`"),
        (Problem((A,), (term((("a", 0),)),), 1.0), "term `conv` repeats `a` 0 times"),
        (Problem((Variable("a", (2, 1), (1.0, 2.0)),), (), 1.0), "widths of `a` are (2, 1)"),
        (Problem((Variable("a", (1, 2), (1.0,)),), (), 1.0), "`a` has 2 widths but 1 values"),
        (
            Problem((Variable("a", (1, 2), (1.0, math.nan)),), (), 1.0),
            "value of `a` at width 2 is nan",
        ),
        (Problem((A,), (), 1.0, start={}), "`start` lacks a width for `a`"),
        (
            Problem((A,), (term(cost=lambda i, o: np.where(i == 1, np.nan, 1.0 * o)),), 1.0),
            "the cost of `conv` is",
        ),
    ],
)
@pytest.mark.parametrize("solver", [Joint(), Knapsack()])
def test_what_cannot_be_solved_is_named(solver, problem, message):
    with pytest.raises(UsageError) as error:
        solver.solve(problem)
    assert message in str(error.value)


def test_a_nan_cost_is_placed():
    bad = term(cost=lambda i, o: np.where(i == 2, np.nan, 1.0 * o))
    with pytest.raises(UsageError, match="`conv` is nan at in-width 2 and out-width 2"):
        Joint().solve(Problem((A,), (bad,), 1.0))
