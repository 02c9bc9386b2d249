"""What each width allows at best, variable by variable."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation.solvers.elimination import Elimination
from prunekit.allocation.solvers.factors import compile_graph
from support.problems import TIMES, problems


@settings(max_examples=150 * TIMES, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.3, 2.0]))
def test_what_each_width_allows_at_best(problem, price):
    """Max-marginals against the best of all plans with that width."""
    graph = compile_graph(problem)
    found = Elimination(graph).marginals(1.0, (price,))
    expected = [np.full(len(value), -np.inf) for value in graph.values]
    for choice in itertools.product(*(range(len(value)) for value in graph.values)):
        at = np.array(choice, dtype=np.int64)
        worth = graph.value(at) - graph.fixed_value
        worth -= price * (graph.cost(at) - graph.fixed_costs[0])
        for most, index in zip(expected, choice, strict=True):
            most[index] = max(most[index], worth)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9)
