"""HALP inside a training loop: budgets, nested widths, resumption."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.allocation import Allocation, allocate
from prunekit.core.plan import ChannelPlan, geometric_budgets
from prunekit.criteria import Accumulator, Magnitude
from prunekit.pruning import Halp
from prunekit.pruning.halp import Schedule
from prunekit.support.registry import criteria
from prunekit.tracing import trace
from support.nets import Residual, image, randomise
from support.scoring import while_training


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(32), image())


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


@pytest.mark.parametrize("name", while_training())
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


def test_channels_that_are_gone_come_back_with_their_last_values():
    """What was there when they went, and of all others what they are now."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph = trace(model.eval(), torch.zeros(1, 3, 8, 8))
    (group,) = [group for group in graph.groups if group.prunable]

    def solve(scores, budget, most, least):
        del budget, least
        widths = {**most, group.id: most[group.id] - 2}
        plan = ChannelPlan.from_widths(graph, widths, scores)
        ratio = graph.macs(widths) / graph.macs({})
        return Allocation(plan, widths, 0.5, ratio, 1.0, ratio, "macs", 0.0, "optimal", "test")

    rule = Halp(graph, Magnitude(), solve, 0.5, Schedule(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule.begin(model, optimizer)
    seen = []
    for step in range(3):
        model.zero_grad()
        model.train()(torch.randn(4, 3, 8, 8)).square().mean().backward()
        rule.after_backward(model, step)
        optimizer.step()
        seen.append((rule.plan.keep[group.id], model[0].weight.detach().clone()))
        rule.after_step(model, optimizer, step)
    assert [len(kept) for kept, _ in seen] == [8, 6, 4]
    now = model[0].weight.detach().clone()
    assert torch.count_nonzero(now.flatten(1).abs().sum(1)) == 4
    rule.revive_(model)
    alive = rule.plan.keep[group.id]
    for channel in range(8):
        last = max(i for i, (kept, _) in enumerate(seen) if channel in kept)
        wanted = now[channel] if channel in alive else seen[last][1][channel]
        assert torch.equal(model[0].weight[channel], wanted), channel
    assert (model(torch.randn(2, 3, 8, 8)) != 0).any()
    known = rule.known_scores().by_group[group.id]
    assert (known > 0).all()
    assert (rule.scores().by_group[group.id] > 0).sum() == len(seen[2][0])
    assert (rule.dense_scores().by_group[group.id] > 0).all()
