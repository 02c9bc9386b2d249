"""IEE in loops of one's own: optimizers, schedules, odd networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.support.errors import TrainingError, UsageError
from prunekit.train import fit
from support.iee_loop import SHORT, Loop, batch, copied, tensors
from support.iee_trainings import CONFIG, fitting, some_data
from support.nets import Plain, Residual, Tokens, image, randomise


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax"])
def test_any_optimizer_with_one_number_per_weight(name):
    loop = Loop()
    loop.optimizer = getattr(torch.optim, name)(loop.model.parameters(), 1e-3)
    loop.until("explore")
    inside, start = loop.inside(), copied(tensors(loop.iee.model))
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    for key, parameter in wide.named_parameters():
        same = parameter.detach() == start[key]
        assert same[inside[key]].all()
        assert same[~inside[key]].float().mean() < 0.5 or inside[key].all()
    loop.run(30 - loop.done)
    assert loop.iee.stage == "final"


def test_looking_at_it_before_the_training_changes_nothing():
    data = some_data()
    model, plain = fitting()
    fit(model.eval(), data, replace(CONFIG, epochs=2), rule=plain)
    model, looked = fitting()
    model.eval()
    assert looked.plan.widths
    assert not looked.model.training
    fit(model, data, replace(CONFIG, epochs=2), rule=looked)
    for name, tensor in tensors(plain.slim).items():
        assert torch.equal(tensors(looked.slim)[name], tensor), name
    model, trained = fitting()
    shape = trained.plan
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(trained.slim.fc.bias, model.fc.bias)
    assert trained.plan == shape


def test_an_average_of_several_networks_is_refused():
    model, rule = fitting()
    with pytest.raises(UsageError, match="`ema` averages one network, and this rule trains"):
        fit(model, some_data(), replace(CONFIG, ema=0.9), rule=rule)


def test_a_loop_of_ones_own_with_a_schedule_of_learning_rates(tmp_path):
    model = randomise(Plain(12)).train()
    graph = pk.trace(model, image())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    schedule = pk.IEESchedule(40, warmup=4, estimate=6, improve=2, explore=2, until=0.5)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    fixed = batch(0, 32, torch.float32)
    first = float(F.cross_entropy(iee.slim(fixed[0]), fixed[1]).detach())
    seen, used = [], []
    for _ in range(40):
        used.append(optimizer.param_groups[0]["lr"])
        F.cross_entropy(iee.model(fixed[0]), fixed[1]).backward()
        iee.step(optimizer)
        rates.step()
        seen.append(iee.stage)
        assert all(p.grad is None for p in iee.model.parameters())
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
            id(p) for p in iee.model.parameters()
        }
    assert used == pytest.approx([0.05 * (1 + math.cos(math.pi * t / 40)) for t in range(40)])
    assert seen.count("final") == 27  # one cycle of ten steps after four
    assert iee.model is iee.slim
    assert float(F.cross_entropy(iee.slim(fixed[0]), fixed[1]).detach()) < first - 0.05
    small = iee.slim.eval()
    pk.save(tmp_path / "run", small, iee.plan, "core_nets:Plain", {"width": 12})
    loaded = pk.load(tmp_path / "run", Plain(12))
    assert torch.equal(loaded(image(3)), small(image(3)))
    assert pk.ChannelPlan.load(tmp_path / "run" / "plan.json").keep == iee.plan.keep


def test_the_networks_keep_the_modes_of_their_modules():
    class Dropping(Residual):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.fc(self.drop(F.relu(self.bn(self.stem(x))).mean((2, 3))))

    loop = Loop(Dropping)
    assert loop.iee.model.drop.training
    loop.iee.model.bn.eval()  # a user who freezes the statistics
    held = loop.iee.model.bn.running_mean.clone()
    whole = loop.model.bn.running_mean.clone()
    for _ in range(30):
        loop.step()
        assert not loop.iee.model.bn.training
        assert loop.iee.model.drop.training
        assert loop.iee.slim.drop.training
    now = loop.iee.model.bn.running_mean
    assert torch.equal(now, whole[list(loop.iee.plan.keep["stem"])])
    assert held.shape


class Odd(nn.Module):
    """Tied weights, a frozen layer, one that nothing uses, and buffers of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.one, self.other = nn.Linear(10, 10), nn.Linear(10, 10)
        self.other.weight = self.one.weight
        self.frozen, self.unused = nn.Linear(10, 8), nn.Linear(5, 5)
        self.frozen.weight.requires_grad_(False)
        self.head, self.scale = nn.Linear(8, 4), nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.full((4,), 0.5))
        self.register_buffer("seen", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.seen += 1
        x = F.relu(self.hidden(F.relu(self.stem(x)))).mean((2, 3))
        x = F.relu(self.other(F.relu(self.one(x))))
        return self.scale * self.head(F.relu(self.frozen(x))) + self.offset


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("start", ["uniform", "dense"])
def test_tied_frozen_unused_and_scalar_parameters(optimizer, start):
    loop = Loop(Odd, optimizer, "macs=40%", start=start, criterion=pk.Magnitude())
    frozen = loop.model.frozen.weight.clone()
    held = {}
    while loop.done < 30:
        if loop.iee.stage == "explore" and not held:
            held = copied(tensors(loop.iee.slim))
        loop.step()
        network = loop.iee.model
        assert network.one.weight is network.other.weight
        assert not network.frozen.weight.requires_grad
        assert torch.equal(network.offset, loop.model.offset)
        if held and loop.iee.stage != "explore":
            assert torch.equal(network.scale, held["scale"])
            assert torch.equal(network.head.bias, held["head.bias"])
            held = {}
    inside = loop.inside()
    rows = frozen[inside["frozen.weight"]]
    assert torch.equal(loop.iee.slim.frozen.weight.reshape(-1), rows)
    assert not torch.equal(loop.iee.slim.scale, torch.ones((), dtype=torch.float64))
    unused = loop.model.unused.weight
    assert torch.equal(loop.iee.slim.unused.weight, unused)
    assert loop.iee.plan.widths["stem"] < 12


def test_linear_networks_of_tokens():
    model = randomise(Tokens()).train()
    graph = pk.trace(model, torch.randn(2, 5, 6))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = pk.IEESchedule(20, warmup=1, estimate=2, improve=1, explore=2, until=1.0)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("params=50%"), schedule=schedule)
    for step in range(20):
        inputs = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(iee.model(inputs), torch.arange(8) % 3).backward()
        iee.step(optimizer)
    assert iee.stage == "final"
    assert len(iee.history) == 3
    assert sum(p.numel() for p in iee.slim.parameters()) <= 0.5 * sum(
        p.numel() for p in model.parameters()
    )


def test_several_parameter_groups_and_parameters_of_others():
    outside = nn.Parameter(torch.ones(3, dtype=torch.float64))
    left_out = "conv2.weight"
    loop = Loop(lambda: Residual(16))
    named = dict(loop.model.named_parameters())
    assert named.pop(left_out) is not None
    weights = [p for p in named.values() if p.ndim > 1]
    others = [p for p in named.values() if p.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": 0.1, "lr": 0.05},
        {"params": [*others[:2], outside, *others[2:]], "lr": 0.01},
    ]
    loop.optimizer = torch.optim.SGD(groups, momentum=0.9)
    initial = copied(dict(loop.model.named_parameters()))
    while loop.done < 30:
        loop.backward()
        outside.grad = torch.ones_like(outside)
        loop.iee.step(loop.optimizer)
        loop.done += 1
        first, second = (group["params"] for group in loop.optimizer.param_groups)
        live = dict(loop.iee.model.named_parameters())
        assert second[2] is outside
        wanted = [live[name] for name in named if named[name].ndim > 1]
        assert [id(p) for p in first] == [id(p) for p in wanted]
        assert {id(p) for p in loop.optimizer.state} <= {id(p) for p in (*first, *second)}
    assert "momentum_buffer" in loop.optimizer.state[outside]
    assert float(outside.detach()[0]) < 0.5
    inside = loop.inside()
    kept_rows = initial[left_out][inside[left_out]]
    assert torch.equal(dict(loop.iee.slim.named_parameters())[left_out].reshape(-1), kept_rows)


def test_momentum_gathered_before_is_gone_on_with():
    loop = Loop(lambda: Residual(16))
    for step in range(3):  # the dense network, as usual
        loop.optimizer.zero_grad()
        inputs, labels = batch(50 + step)
        F.cross_entropy(loop.model(inputs), labels).backward()
        loop.optimizer.step()
    loop.optimizer.zero_grad()
    dense = {
        n: loop.optimizer.state[p]["momentum_buffer"].clone()
        for n, p in loop.model.named_parameters()
    }
    start = copied(dict(loop.model.named_parameters()))
    inside = loop.inside()
    loop.backward()
    gradients = {n: p.grad.clone() for n, p in loop.iee.model.named_parameters()}
    loop.iee.step(loop.optimizer)
    for name, state in loop.state().items():
        cut = start[name][inside[name]].reshape(gradients[name].shape)
        old = dense[name][inside[name]].reshape(gradients[name].shape)
        assert torch.allclose(
            state["momentum_buffer"], 0.9 * old + gradients[name] + 1e-2 * cut, rtol=1e-12
        )


def test_optimizers_that_do_not_fit():
    loop = Loop()
    loop.backward()
    with pytest.raises(UsageError, match="the optimizer has none of the model's parameters"):
        loop.iee.step(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1))
    loop = Loop().run(1)
    with pytest.raises(UsageError, match="IEE was begun with another optimizer"):
        loop.iee.step(torch.optim.SGD(loop.model.parameters(), 0.1))
    with pytest.raises(UsageError, match="IEE was made for another model"):
        loop.iee.begin(nn.Linear(2, 2), loop.optimizer)

    class Rows(torch.optim.SGD):
        """One number per row, as factored optimizers have."""

        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["row"] = (
                    parameter.detach().flatten(1).mean(1)
                    if (parameter.ndim > 1)
                    else parameter.detach().mean().reshape(1)
                )

    loop = Loop()
    loop.optimizer = Rows(loop.model.parameters(), 0.05)
    with pytest.raises(UsageError, match=r"the optimizer's row for .* needs an optimizer with one"):
        loop.run(6)


def test_iee_needs_a_schedule():
    model = randomise(Residual())
    with pytest.raises(UsageError, match="IEE needs a schedule"):
        pk.IEE(model, pk.trace(model, image()), None, pk.Budget.parse("macs=50%"))


@pytest.mark.parametrize("stage", ["estimate", "explore"])
def test_batches_whose_gradients_overflowed_are_not_scored(stage):
    class Overflowing(pk.Taylor):
        def channel_scores(self, group, modules):
            found = super().channel_scores(group, modules)
            return found * float("inf") if loop.iee.stage == stage and loop.bad > 0 else found

    for bad in (1, 5, 99):  # within the stage, and longer: it waits, but not for ever
        loop = Loop(criterion=Overflowing(), estimate=2, explore=2)
        loop.bad = 0
        loop.until(stage)
        loop.bad = bad
        if bad == 99:
            with pytest.raises(TrainingError, match="no step of IEE's cycle 0 had finite taylor"):
                loop.run(30)
            continue
        for _ in range(bad):
            loop.step()
            loop.bad -= 1
        assert loop.iee.stage == stage
        loop.run(30 - loop.done)
        assert loop.iee.stage == "final"


def test_a_parametrised_weight_is_refused_by_name():
    model = Residual()
    nn.utils.parametrizations.weight_norm(model.conv1)
    graph = pk.trace(model, image())
    schedule = pk.IEESchedule(30, **SHORT)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    with pytest.raises(UsageError, match=r"conv1\.weight is computed by a parametrisation"):
        _ = iee.model
