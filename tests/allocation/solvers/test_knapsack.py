"""The knapsack: exact in its own model, and blind beyond it."""

from __future__ import annotations

import itertools

from hypothesis import given, settings

from prunekit.allocation.solvers import (
    Joint,
    Knapsack,
    Problem,
    Term,
    Variable,
)
from prunekit.allocation.solvers.knapsack import marginal_prices
from support.problems import EIGHTH, TIMES, plans, problems


@settings(max_examples=200 * TIMES, deadline=None)
@given(problems())
def test_knapsack_is_exact_in_its_own_model(problem):
    prices, fixed = marginal_prices(problem)
    slack = problem.budget - fixed - sum(float(p.min()) for p in prices)
    # cells of an eighth or finer, so that no price is rounded
    steps = max(1, round(slack / EIGHTH))
    solution = Knapsack(steps=steps).solve(problem)
    best = None
    for choice in itertools.product(*(range(len(v.widths)) for v in problem.variables)):
        price = fixed + sum(float(p[i]) for p, i in zip(prices, choice, strict=True))
        value = sum(v.values[i] for v, i in zip(problem.variables, choice, strict=True))
        if price <= problem.budget and (best is None or value > best):
            best = value
    if best is None:
        assert solution.widths == {v.name: v.widths[0] for v in problem.variables}
    else:
        assert solution.value == best
    assert solution.cost == problem.cost(solution.widths)
    assert (solution.status == "feasible") == (solution.cost <= problem.budget)
    assert solution.bound >= max(problem.value(w) for w in plans(problem))


def test_knapsack_does_not_see_what_the_next_layer_saves():
    a = Variable("a", (1, 2), (1.0, 2.0))
    terms = (
        Term("first", (), 1, (("a", 1),), 0, lambda i, o: 1.0 * i * o),
        Term("second", (("a", 1),), 0, (), 8, lambda i, o: 1.0 * i * o),
    )
    problem = Problem((a,), terms, budget=10.0)
    knapsack, joint = Knapsack().solve(problem), Joint().solve(problem)
    assert joint.widths == {"a": 1}
    # 16 of the second layer are spent whatever `a` is, the model believes
    assert knapsack.widths == {"a": 1}
    assert knapsack.status == "feasible"
    roomy = Problem((a,), terms, budget=17.5)
    assert Knapsack().solve(roomy).cost == 9.0


def test_knapsack_moves_both_sides_of_a_depthwise_layer():
    a = Variable("a", (2, 4), (1.0, 2.0))
    term = Term("dw", (("a", 1),), 0, (("a", 1),), 0, lambda i, o: 1.0 * i * o)
    prices, fixed = marginal_prices(Problem((a,), (term,), 16.0))
    assert (prices[0] + fixed).tolist() == [4.0, 16.0]


def test_knapsack_holds_in_widths_at_the_start():
    variables = (Variable("a", (2, 4), (1.0, 2.0)), Variable("b", (2, 4), (1.0, 2.0)))
    term = Term("conv", (("a", 1),), 0, (("b", 1),), 0, lambda i, o: 1.0 * i * o)
    prices, fixed = marginal_prices(Problem(variables, (term,), 16.0, start={"a": 3, "b": 4}))
    assert prices[0].tolist() == [0.0, 0.0]
    assert (prices[1] + fixed).tolist() == [6.0, 12.0]
