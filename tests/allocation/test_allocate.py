"""Allocation from tables and formulas: budgets hold, and what is out of reach is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit as pk
from prunekit import zoo
from prunekit.allocation import allocate
from prunekit.allocation.costs import LatencyCost, MacsCost, ParamsCost, total
from prunekit.core.scores import Scores
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Protocol, Sample
from prunekit.report.sweep import Sweep
from prunekit.support.errors import InfeasibleError, UsageError
from prunekit.support.files import load_json
from support.commands import ON_FAKE, SWEEP, Says
from support.nets import Concat, Depthwise, Flatten, Residual, image


def table_for(graph, granularity=1):
    """Layers cost 5 us and 0.02 us for every pair of channels."""
    entries = []
    for shape in dict.fromkeys(layer.shape for layer in graph.layers):
        rows = [
            Sample(i, cin, cout, 5 + 0.02 * cin * cout, 0.1, 5)
            for i, (cin, cout) in enumerate([(8, 8), (64, 64), (8, 128), (128, 8), (32, 64)])
        ]
        entries.append(Entry(shape, tuple(rows)))
    here, protocol = Environment("fake", "1"), Protocol("harvest", 5, 1, 1, 0)
    return LatencyTable(
        Target("fake"), here, protocol, granularity, (graph.fingerprint,), tuple(entries), ()
    )


def random_scores(graph, seed=0):
    rng = np.random.default_rng(seed)
    found = {g.id: rng.exponential(size=g.size) for g in graph.groups if g.prunable}
    return Scores(found, "test")


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(32), image())


@pytest.fixture(scope="module")
def graphs(graph):
    return [graph, *(pk.trace(make(), image()) for make in (Depthwise, Concat, Flatten))]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    which=st.integers(0, 3),
    kind=st.sampled_from(["latency", "macs", "params"]),
    percent=st.integers(30, 100),
    granularity=st.sampled_from([1, 2, 4]),
    solver=st.sampled_from([pk.Joint(), pk.Knapsack()]),
    seed=st.integers(0, 9),
)
def test_the_budget_holds_under_its_own_prediction(
    graphs, which, kind, percent, granularity, solver, seed
):
    graph = graphs[which]
    table = table_for(graph)
    cost = {"latency": LatencyCost(table), "macs": MacsCost(), "params": ParamsCost()}[kind]
    budget = pk.Budget.parse(f"{kind}={percent}%")
    scores = random_scores(graph, seed)
    costs = table if kind == "latency" else None  # formulas need no table
    smallest = total(graph, {g.id: g.widths(granularity)[0] for g in graph.groups}, cost)
    if smallest > budget.limit(total(graph, {}, cost)):
        with pytest.raises(InfeasibleError, match="is below what is reachable"):
            allocate(graph, scores, costs, budget, solver, granularity=granularity)
        return
    found = allocate(graph, scores, costs, budget, solver, granularity=granularity)
    assert found.cost == pytest.approx(total(graph, found.widths, cost))
    assert found.cost <= found.limit * (1 + 1e-9)
    assert found.limit == pytest.approx(percent / 100 * found.dense_cost)
    assert found.plan.widths == found.widths
    for name, width in found.widths.items():
        group = graph.group(name)
        assert width in group.widths(granularity)
        if group.prunable:
            best = set(scores.ranking(name)[:width].tolist())
            assert set(found.plan.keep[name]) == best
    assert 0 <= found.value <= 1
    if percent == 100:
        # the knapsack's costs are in whole steps, rounded up: it may be a channel short
        assert found.plan.is_dense or (isinstance(solver, pk.Knapsack) and found.value > 0.99)


def test_a_larger_budget_keeps_more(graph):
    scores, table = random_scores(graph), table_for(graph)
    values = [
        allocate(graph, scores, table, pk.Budget.parse(f"{p}%")).value for p in range(40, 101, 10)
    ]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1)


def test_the_tables_granularity_is_the_default(graph):
    scores, budget = random_scores(graph), pk.Budget.parse("60%")
    found = allocate(graph, scores, table_for(graph, granularity=8), budget)
    assert all(w % 8 == 0 for g, w in found.widths.items() if g != "fc")
    # a latency surface has the table's steps whatever is asked for, a formula has none
    macs = pk.Budget.parse("macs=50%")
    finer = allocate(graph, scores, table_for(graph, granularity=8), macs, granularity=1)
    assert any(w % 8 for g, w in finer.widths.items() if g != "fc")


def test_an_absolute_budget_is_in_milliseconds(graph):
    table, scores = table_for(graph), random_scores(graph)
    dense = total(graph, {}, LatencyCost(table))
    found = allocate(graph, scores, table, pk.Budget.parse(f"{0.6 * dense:.9f}ms"))
    assert found.limit == pytest.approx(0.6 * dense)
    assert found.unit == "ms"
    assert found.plan.predicted == {"latency_ms": pytest.approx(found.cost)}
    assert allocate(graph, scores, table, pk.Budget.parse("9s")).plan.is_dense


def test_widths_do_not_exceed_what_is_allowed(graph):
    scores, table = random_scores(graph), table_for(graph)
    caps = {"stem": 20, "conv1": 13}
    found = allocate(graph, scores, table, pk.Budget.parse("100%"), at_most=caps)
    assert (found.widths["stem"], found.widths["conv1"]) == (20, 13)
    tight = allocate(graph, scores, table, pk.Budget.parse("100%"), granularity=8, at_most=caps)
    assert (tight.widths["stem"], tight.widths["conv1"]) == (16, 8)
    # a cap below the smallest width allowed is a width that exists already, and stays
    low = allocate(graph, scores, table, pk.Budget.parse("100%"), granularity=16, at_most=caps)
    assert (low.widths["stem"], low.widths["conv1"]) == (16, 13)


def test_infeasible_budgets_say_what_the_smallest_costs(graph):
    table, scores = table_for(graph), random_scores(graph)
    with pytest.raises(InfeasibleError) as caught:
        allocate(graph, scores, table, pk.Budget.parse("20%"), granularity=8)
    smallest = total(graph, {"stem": 8, "conv1": 8}, LatencyCost(table))
    dense = total(graph, {}, LatencyCost(table))
    assert str(caught.value) == (
        f"20% ({0.2 * dense:.4g} ms) is below what is reachable: the smallest plan costs "
        f"{smallest:.4g} ms, {smallest / dense:.1%} of the dense {dense:.4g}; "
        "ask for at least that"
    )
    assert caught.value.exit_code == 1
    with pytest.raises(InfeasibleError, match=r"macs=0.1% \(.* MACs\) is below what is reachable"):
        allocate(graph, scores, None, pk.Budget.parse("macs=0.1%"))


def test_a_latency_budget_needs_a_table(graph):
    with pytest.raises(UsageError, match="a latency budget needs a latency table; run `prunekit"):
        allocate(graph, random_scores(graph), None, pk.Budget.parse("50%"))


def test_a_table_beside_a_macs_budget_gives_its_granularity_only(graph):
    found = allocate(graph, random_scores(graph), table_for(graph, 8), pk.Budget.parse("macs=50%"))
    assert found.unit == "MACs"
    assert found.cost == graph.macs(found.widths) <= 0.5 * graph.macs({})
    assert all(w % 8 == 0 for g, w in found.widths.items() if g != "fc")


def one_per_channel(graph, **other):
    return Scores({g.id: np.ones(g.size) for g in graph.groups if g.prunable} | other, "by hand")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"locked": {"stem": [9]}}, "`locked` names channel 9 of group 'stem', which has 8"),
        ({"locked": {"stem": [-1]}}, "`locked` names channel -1 of group 'stem'"),
        ({"locked": {"stem": [1, 1]}}, "names a channel of group 'stem' twice"),
        ({"locked": {"trunk": [1]}}, "no channel group 'trunk'"),
        ({"at_least": {"trunk": 1}}, "no channel group 'trunk'"),
        ({"at_least": {"stem": 9}}, "`at_least` asks for 9 channels of group 'stem', which has 8"),
        (
            {"at_least": {"stem": 6}, "at_most": {"stem": 2}},
            "`at_least` 6 and `at_most` 2 of group 'stem' exclude each other",
        ),
        (
            {"locked": {"stem": [0, 1, 2]}, "at_most": {"stem": 2}},
            "3 channels of group 'stem' are `locked` but `at_most` 2 may stay",
        ),
        ({"granularity": 0}, "`granularity` is 0; the least is 1"),
    ],
)
def test_bounds_that_no_width_can_keep_to_are_named(bounds, message):
    graph = pk.trace(Residual().eval(), image())
    with pytest.raises(UsageError, match=re.escape(message)):
        allocate(graph, one_per_channel(graph), None, pk.Budget.parse("macs=50%"), **bounds)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"stem": np.full(8, np.nan)}, "by hand scores of group 'stem' are not finite"),
        ({"stem": -np.ones(8)}, "by hand scores of group 'stem' are negative"),
        ({"stem": np.ones(7)}, "have shape (7,), not one per channel: (8,)"),
        ({"trunk": np.ones(8)}, "no channel group 'trunk'"),
    ],
)
def test_scores_that_do_not_fit_are_named(scores, message):
    graph = pk.trace(Residual().eval(), image())
    with pytest.raises(UsageError, match=re.escape(message)):
        allocate(graph, one_per_channel(graph, **scores), None, pk.Budget.parse("macs=50%"))


@pytest.mark.parametrize("command", ["profile", "sweep"])
def test_a_granularity_wider_than_every_group_is_refused(command, prunekit: Says, home: Path):
    flags = ("-o", "new.json", "--granularity", 100)
    status, out, err = prunekit(command, "net.py:tiny", *ON_FAKE, *flags)
    assert (status, out) == (2, "")
    assert err == (
        "prunekit: nothing can be pruned at granularity 100, the widest prunable group has 32 "
        "channels; take a smaller one\n"
    )
    assert not list(home.glob("new*"))


def test_a_sweep_ends_at_the_smallest_plan_with_every_solver(prunekit: Says, home: Path):
    for solver in ("joint", "knapsack", "greedy", "uniform"):
        assert prunekit(*SWEEP, "--points", 3, "--solver", solver, "-o", f"{solver}.json")[0] == 0
        found = load_json(home / f"{solver}.json", Sweep, "sweep", 1)
        table = LatencyTable.load(home / "table.json")
        last = found.points[-1]
        assert all(width <= table.granularity for width in last.widths.values() if width != 10)


def test_limits_in_ones_own_code():
    model = zoo.build("resnet20", 10, 3).eval()
    graph = pk.trace(model, torch.zeros(1, 3, 16, 16))
    scores = pk.score(model, graph, pk.Magnitude())
    half, few = pk.Budget.parse("macs=50%"), pk.Budget.parse("params=40%")
    found = pk.allocate(graph, scores, None, half, granularity=4, limits=[few])
    free = pk.allocate(graph, scores, None, half, granularity=4)

    def params(widths: dict[str, int]) -> int:
        return sum(x.params(x.width("in", widths), x.width("out", widths)) for x in graph.layers)

    assert params(free.widths) > 0.4 * params({})
    assert params(found.widths) <= 0.4 * params({})
    assert found.ratio <= 0.5
    assert found.value < free.value
    with pytest.raises(UsageError, match="takes one budget only"):
        pk.allocate(graph, scores, None, half, pk.Knapsack(), limits=[few])
    with pytest.raises(InfeasibleError, match="at once"):
        pk.allocate(graph, scores, None, half, limits=[pk.Budget.parse("params=9")])
