"""Allocation from tables and formulas, and iterative pruning inside a training loop."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_nets import Concat, Depthwise, Flatten, Residual, image, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit as pk
from prunekit.allocation import allocate
from prunekit.allocation.costs import LatencyCost, MacsCost, ParamsCost, total
from prunekit.core.plan import geometric_budgets
from prunekit.core.scores import Scores
from prunekit.core.target import Environment, Target
from prunekit.criteria import Accumulator
from prunekit.latency import Entry, LatencyTable, Protocol, Sample
from prunekit.pruning import Halp
from prunekit.pruning.halp import Schedule
from prunekit.support.errors import InfeasibleError, UsageError
from prunekit.support.registry import criteria


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


def test_when_pruning_is_due():
    schedule = Schedule(steps=3, interval=4)
    due = {step: schedule.due(step) for step in range(20)}
    assert {step: number for step, number in due.items() if number is not None} == {
        3: 0,
        7: 1,
        11: 2,
    }


class Training:
    """A few steps with momentum and weight decay, as a trainer calls the rule."""

    def __init__(
        self, optimizer="sgd", fraction=0.4, steps=4, interval=3, criterion=None, granularity=1
    ):
        torch.manual_seed(0)
        self.model = randomise(Residual(16)).train()
        self.graph = pk.trace(self.model, image())
        self.asked, self.ends, self.granularity = [], [], granularity
        make = {
            "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
            "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
            "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        }[optimizer]
        self.optimizer = make(self.model.parameters())
        schedule = Schedule(steps, interval)
        self.rule = Halp(self.graph, criterion or pk.Taylor(), self.solve, fraction, schedule)
        self.step = 0

    def solve(self, scores, fraction, at_most, at_least=None):
        if at_least != {}:  # a step, not what it is to hold
            self.asked.append((fraction, dict(at_most), scores))
        budget = pk.Budget("macs", fraction, relative=True)
        found = allocate(
            *(self.graph, scores, None, budget),
            granularity=self.granularity,
            at_most=at_most,
            at_least=at_least,
        )
        if at_least == {}:
            self.ends.append(found)
        return found

    def run(self, count):
        for _ in range(count):
            generator = torch.Generator().manual_seed(self.step)
            inputs = torch.randn(4, 3, 8, 8, generator=generator)
            labels = torch.randint(0, 4, (4,), generator=generator)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(inputs), labels).backward()
            self.rule.after_backward(self.model, self.step)
            self.optimizer.step()
            self.rule.after_step(self.model, self.optimizer, self.step)
            self.step += 1
            self.check_zeros()

    def check_zeros(self):
        modules = dict(self.model.named_modules())
        for name, cut in self.rule.plan.cuts.items():
            module = modules[name]
            out, into = list(cut.out), list(cut.in_)
            if module.weight.ndim > 1:
                assert not module.weight[:, into].any()
            if out:
                assert not module.weight[out].any()
                assert module.bias is None or not module.bias[out].any()


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw"])
def test_pruned_channels_stay_exactly_zero(optimizer):
    training = Training(optimizer)
    training.run(10)  # through the third pruning, and on
    assert not training.rule.plan.is_dense
    assert sum(len(cut.out) for cut in training.rule.plan.cuts.values()) > 10
    small = pk.slim(training.model, training.rule.plan).eval()
    with torch.no_grad():
        x = image(2)
        assert torch.allclose(training.model.eval()(x), small(x), atol=1e-5)


def test_budgets_fall_exponentially_and_widths_are_nested():
    training = Training(steps=4, interval=2)
    kept = []
    for _ in range(8):
        training.run(1)
        kept.append({g: set(k) for g, k in training.rule.plan.keep.items()})
    fractions = [fraction for fraction, _, _ in training.asked]
    # the last pruning is the caller's, who measures
    assert fractions == pytest.approx(geometric_budgets(1.0, 0.4, 4)[:3])
    assert np.diff(np.log([1.0, *fractions])) == pytest.approx(np.log(0.4) / 4)
    for earlier, later in pairwise(kept):
        assert all(later[g] <= earlier[g] for g in later)
    ratios = [training.graph.macs({g: len(k) for g, k in keep.items()}) for keep in kept]
    assert ratios[-1] <= fractions[-1] * training.graph.macs({})
    rows = training.rule.rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["predicted_ratio"] <= fractions[-1]
    assert training.rule.rows() == []
    for _, at_most, scores in training.asked[1:]:
        for group, values in scores.by_group.items():
            assert (values > 0).sum() == at_most[group]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("granularity", [4, 8])
def test_every_plan_holds_the_best_one_at_the_end(granularity, seed):
    training = Training(fraction=0.5, criterion=pk.Random(seed), granularity=granularity)
    for _ in range(9):
        training.run(1)
        if training.ends:
            end = training.ends[-1]
            assert all(end.widths[g] <= n for g, n in training.rule.plan.widths.items())
    assert len(training.ends) == 3
    last = training.solve(training.rule.scores(), 0.5, training.rule.plan.widths)
    limit = 0.5 * training.graph.macs({})
    assert training.graph.macs(end.widths) <= limit
    assert training.graph.macs(last.widths) <= limit


def test_scores_are_those_of_the_last_interval():
    training = Training(steps=2, interval=3)
    training.run(6)
    scores = training.rule.scores()
    assert scores.batches == 3
    assert training.rule.scores() is scores
    assert not training.rule.plan.is_dense
    for group, values in scores.by_group.items():
        assert np.flatnonzero(values).tolist() == list(training.rule.plan.keep[group])
    training.run(2)  # after the last pruning nothing is accumulated
    assert training.rule.total.batches == 0
    assert training.rule.scores() is scores


@pytest.mark.parametrize("stop", [1, 3, 7, 11])
def test_a_resumed_run_is_the_same_run(stop):
    whole = Training()
    whole.run(12)

    first = Training()
    first.run(stop)
    tensors, facts = first.rule.state()
    facts = json.loads(json.dumps(facts))
    second = Training()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.rule.load_state(tensors, facts)
    second.step = stop
    again, _ = second.rule.state()
    assert all(torch.equal(tensors[name], again[name]) for name in {**tensors, **again})
    second.run(12 - stop)

    assert second.rule.plan == whole.rule.plan
    for group, values in whole.rule.scores().by_group.items():
        assert (second.rule.scores().by_group[group] == values).all()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)


def test_a_batch_whose_gradients_overflowed_is_left_out():
    model = Residual()
    graph = pk.trace(model, image())
    total = Accumulator(graph, pk.Taylor())
    for scale, counted in ((1.0, True), (float("inf"), False), (1.0, True)):
        model.zero_grad()
        model(image()).square().mean().backward()
        for parameter in model.parameters():
            parameter.grad *= scale
        assert total.add(model) is counted
    assert total.batches == 2
    assert all(np.isfinite(values).all() for values in total.scores().by_group.values())


@pytest.mark.parametrize("name", sorted(criteria.names()))
def test_every_criterion_prunes_step_by_step(name):
    training = Training(criterion=criteria.get(name)())
    training.run(12)
    rule, dense = training.rule, training.graph.macs({})
    assert training.graph.macs(rule.plan.widths) <= rule.budgets[2] * dense < 0.6 * dense
    last = training.solve(rule.scores(), 0.4, rule.plan.widths).plan
    assert training.graph.macs(last.widths) <= 0.4 * dense
    assert all(0 < last.widths[g] <= n for g, n in rule.plan.widths.items())


def test_magnitude_is_normalised_over_the_channels_that_are_there():
    scores = np.array([4.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(pk.Magnitude().normalised(scores), [4 / 3, 2 / 3, 0, 0])


def test_budgets_stop_at_the_floor():
    graph = pk.trace(Residual(), image())
    rule = Halp(graph, pk.Magnitude(), None, 0.25, Schedule(4, 1), floor=0.4)
    assert rule.budgets == pytest.approx([0.25**0.25, 0.5, 0.4, 0.4])


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


def test_halp_goes_on_with_norms_over_the_channels_that_are_left(tmp_path):
    from torch import nn
    from torch.utils.data import TensorDataset

    from prunekit.train import Data, TrainConfig, fit

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(24)
            self.fc, self.head = nn.Linear(24, 32), nn.Linear(32, 10)

        def forward(self, x):
            x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
            return self.head(F.gelu(self.fc(x)).mean(1))

    class StopError(Exception):
        pass

    draws = torch.Generator().manual_seed(3)
    images = torch.randn(64, 3, 16, 16, generator=draws)
    labels = torch.randint(10, (64,), generator=draws)
    data = Data(TensorDataset(images, labels), TensorDataset(images, labels), 10, (3, 16, 16), "x")
    config = TrainConfig(epochs=3, batch_size=16, lr=0.05)

    def train(folder, stop=0, *, resume=False):
        torch.manual_seed(0)
        model = Net()
        graph = pk.trace(model, images[:1])

        def solve(scores, fraction, most, least):
            budget = pk.Budget.parse(f"macs={100 * fraction}%")
            return pk.allocate(graph, scores, None, budget, at_most=most, at_least=least)

        def log(row):
            if row.get("epoch") == stop:
                raise StopError

        rule = Halp(graph, pk.Taylor(), solve, 0.4, Schedule(3, 2))
        fit(model, data, config, folder=folder, resume=resume, rule=rule, log=log)
        return model.state_dict()

    whole = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(StopError):
            train(tmp_path / f"{stop}", stop)
        again = train(tmp_path / f"{stop}", resume=True)
        assert all(torch.equal(again[name], value) for name, value in whole.items()), stop
