"""What each stage may change, against a dense network with masks and the plans alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.support.errors import UsageError
from support.iee_loop import Loop, batch, copied, lifted, tensors
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    Residual,
    image,
    randomise,
)


class Masked:
    """IEE's training on the dense network with masks: slow, plain, and written separately."""

    def __init__(self, loop, kind, *, momentum="kept"):
        self.model, self.kind, self.fresh = copy.deepcopy(loop.model), kind, momentum == "zero"
        parameters = dict(self.model.named_parameters())
        self.first = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.second = copied(self.first)
        self.count = self.explored = 0

    def step(self, number, inside, exploring):
        """One step in which only what is free changes."""
        if self.fresh and exploring != bool(self.explored):  # it begins, or it is over
            asleep = {n: ~m for n, m in inside.items()} if exploring else self.asleep
            for name, moment in [*self.first.items(), *self.second.items()]:
                moment[asleep[name]] = 0
            self.asleep = asleep
        if not exploring:
            self.explored = 0
        net = copy.deepcopy(self.model).train()
        if not exploring:
            for name, tensor in net.named_parameters():
                tensor.data *= inside[name]
        inputs, labels = batch(number)
        F.cross_entropy(net(inputs), labels).backward()
        self.count += not exploring
        self.explored += exploring
        time = self.count + self.explored
        if exploring and self.fresh:
            time = self.explored
        for name, parameter in self.model.named_parameters():
            free = ~inside[name] if exploring else inside[name]
            gradient = dict(net.named_parameters())[name].grad
            moved = self.moved(name, parameter.data, gradient, free, time)
            parameter.data[free] = moved[free]
        for name, tensor in self.model.named_buffers():
            free = ~inside[name] if exploring else inside[name]
            if tensor.is_floating_point():
                tensor[free] = dict(net.named_buffers())[name][free]

    def moved(self, name, value, gradient, free, time):
        if self.kind == "sgd":
            gradient = gradient + 1e-2 * value
            self.first[name][free] = (0.9 * self.first[name] + gradient)[free]
            return value - 0.05 * (gradient + 0.9 * self.first[name])
        self.first[name][free] = (0.9 * self.first[name] + 0.1 * gradient)[free]
        self.second[name][free] = (0.999 * self.second[name] + 0.001 * gradient**2)[free]
        mean = self.first[name] / (1 - 0.9**time)
        spread = (self.second[name] / (1 - 0.999**time)).sqrt() + 1e-8
        return value * (1 - 1e-2 * 0.1) - 1e-2 * mean / spread


@pytest.mark.parametrize(
    ("make", "optimizer", "options"),
    [
        (Residual, "sgd", {}),
        (Residual, "adamw", {}),
        (Residual, "adamw", {"momentum": "zero"}),
        (Depthwise, "sgd", {"start": "dense"}),
        (Depthwise, "adamw", {"improve": 0}),
        (Concat, "sgd", {"momentum": "zero"}),
        (Flatten, "adamw", {}),
    ],
)
def test_slim_training_equals_masked_training_of_the_dense_network(make, optimizer, options):
    loop = Loop(make, optimizer, **options)
    _ = loop.iee.plan
    masked = Masked(loop, optimizer, momentum=options.get("momentum", "kept"))
    key = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[optimizer]
    seen = set()
    while loop.done < 30:
        exploring = loop.iee.stage == "explore"
        network, inside = loop.iee.model, loop.inside()
        seen.add(loop.iee.stage)
        loop.backward()
        loop.iee.step(loop.optimizer)
        masked.step(loop.done, inside, exploring)
        loop.done += 1
        held = tensors(masked.model)
        where = {n: torch.ones_like(m) for n, m in inside.items()} if exploring else inside
        for name, tensor in network.named_parameters():
            found = lifted(where[name], tensor)[where[name]]
            assert torch.allclose(found, held[name][where[name]], rtol=1e-7, atol=1e-9), name
        for name, tensor in network.named_buffers():
            if tensor.is_floating_point():
                free = ~inside[name] if exploring else inside[name]
                found = lifted(where[name], tensor)[free]
                assert torch.allclose(found, held[name][free], rtol=1e-7, atol=1e-9), name
        if loop.iee.model is network and not exploring:
            for name, state in loop.state().items():
                found = lifted(inside[name], state[key])
                expected = masked.first[name] * inside[name]
                assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9), name
    assert seen >= {"warm-up", "estimate", "explore", "final"}
    assert len(loop.iee.history) == (3 if "improve" not in options else 4)
    assert sum(row["grown"] for row in loop.iee.history) > 3


@pytest.mark.parametrize("make", [Residual, Depthwise, Flatten], ids=lambda make: make.__name__)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_exploring_leaves_the_active_structure_as_it_is_bit_for_bit(make, optimizer, norm):
    loop = Loop(make, optimizer, norm=norm)
    for _ in range(2):
        loop.until("improve").run(1)
        before = loop.state()
        assert loop.iee.stage == "improve"
        loop.step()
        assert loop.iee.stage == "explore"
        inside, slim, outside = loop.inside(), loop.iee.slim, 0
        held = copied(tensors(slim))
        states = {n: {k: v.clone() for k, v in s.items()} for n, s in before.items()}
        probe = copy.deepcopy(slim).eval()
        answers = probe(batch(99)[0])
        wide = loop.iee.model
        start = copied(tensors(wide))
        while loop.iee.stage == "explore":
            loop.step()
            assert loop.iee.slim is not wide
            for name, parameter in wide.named_parameters():
                now, was = parameter.detach(), start[name]
                assert torch.equal(now[inside[name]], was[inside[name]]), name
                outside += int((now != was)[~inside[name]].sum())
            if loop.iee.stage == "explore":
                assert loop.iee.slim is slim
                assert all(torch.equal(t, held[n]) for n, t in tensors(slim).items())
        assert outside > 100
        # and what the grown network has of it, statistics and momentum included, is still that
        now = loop.inside()
        grown = tensors(loop.iee.model)
        for name, tensor in held.items():
            assert torch.equal(lifted(now[name], grown[name])[inside[name]], tensor.reshape(-1)), (
                name
            )
        for name, state in loop.state().items():
            for key, value in state.items():
                if value.ndim:
                    found = lifted(now[name], value)[inside[name]]
                    assert torch.equal(found, states[name][key].reshape(-1)), (name, key)
        assert torch.equal(answers, copy.deepcopy(slim).eval()(batch(99)[0]))


def test_only_what_explores_has_a_gradient_to_clip():
    loop = Loop(optimizer="adamw").until("explore")
    inside = loop.inside()
    loop.backward()
    before = {n: p.grad.clone() for n, p in loop.iee.model.named_parameters()}
    loop.iee.after_backward(loop.iee.model, loop.done)
    for name, parameter in loop.iee.model.named_parameters():
        assert before[name][inside[name]].any()
        assert not parameter.grad[inside[name]].any()
        assert torch.equal(parameter.grad[~inside[name]], before[name][~inside[name]])


def test_a_scaler_of_mixed_precision_changes_nothing_and_leaves_overflows_out():
    plain, scaled = Loop(), Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(spoilt=False):
        inputs, labels = batch(scaled.done)
        scaler.scale(F.cross_entropy(scaled.iee.model(inputs), labels)).backward()
        if spoilt:
            next(scaled.iee.model.parameters()).grad.fill_(math.inf)
        scaled.iee.step(scaled.optimizer, scaler=scaler)
        scaled.done += 1

    for _ in range(30):
        plain.step()
        step()
        assert scaled.iee.plan == plain.iee.plan
    assert scaled.iee.stage == "final"
    for name, value in tensors(plain.iee.slim).items():
        assert torch.equal(tensors(scaled.iee.slim)[name], value), name
    before = copied(dict(scaled.iee.model.named_parameters()))
    step(spoilt=True)
    for name, parameter in scaled.iee.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_inactive_neither_changes_nor_matters_while_the_rest_trains(optimizer):
    plain, other = Loop(optimizer=optimizer), Loop(optimizer=optimizer)
    inside = plain.inside()
    with torch.no_grad():
        for name, tensor in tensors(other.model).items():
            if tensor.is_floating_point():
                tensor[~inside[name]] = 7.0
    assert other.iee.plan == plain.iee.plan
    for _ in range(2):
        held = copied(tensors(other.model))
        outside = {n: ~m for n, m in other.inside().items()}
        while plain.iee.stage != "explore":
            before = plain.iee.plan
            plain.step()
            other.step()
            assert plain.iee.plan == other.iee.plan  # the decision to prune included
            if plain.iee.stage == "explore":
                break
            for name, tensor in tensors(plain.iee.model).items():
                assert torch.equal(tensor, tensors(other.iee.model)[name]), name
            if plain.iee.plan != before:
                assert plain.iee.stage == "improve"
        for name, tensor in tensors(other.model).items():
            assert torch.equal(tensor[outside[name]], held[name][outside[name]]), name
        plain.until("estimate")
        other.until("estimate")
        # what grew differs, so that the second time both start from one network
        other = copy.deepcopy(plain)
        inside = plain.inside()
        with torch.no_grad():
            for name, tensor in tensors(other.model).items():
                if tensor.is_floating_point():
                    tensor[~inside[name]] -= 3.0


def test_without_exploring_nothing_is_trained_in_its_one_step():
    loop = Loop(exploring=False, optimizer="adamw")
    while loop.iee.stage != "final":
        loop.until("explore")
        slim, start = (
            copied(tensors(loop.iee.slim)),
            copied(dict(loop.iee.model.named_parameters())),
        )
        inside, wide = loop.inside(), loop.iee.model
        loop.step()
        assert loop.iee.stage != "explore"
        assert all(torch.equal(p, start[n]) for n, p in wide.named_parameters())
        now = loop.inside()
        for name, tensor in tensors(loop.iee.model).items():
            assert torch.equal(lifted(now[name], tensor)[inside[name]], slim[name].reshape(-1))
    assert [row["step"] for row in loop.iee.history] == [8, 14, 20, 26]
    assert sum(row["grown"] for row in loop.iee.history) > 0


@pytest.mark.parametrize("grow", ["explored", "mru"])
@pytest.mark.parametrize("momentum", ["kept", "zero"])
def test_without_freezing_exploration_trains_everything(grow, momentum):
    loop = Loop(freeze=False, grow=grow, momentum=momentum)
    loop.until("explore")
    inside, start = loop.inside(), copied(tensors(loop.iee.model))
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    changed = 0
    now, grown = loop.inside(), tensors(loop.iee.model)
    for name, tensor in tensors(wide).items():
        mask = inside[name]
        changed += int((tensor != start[name])[mask].sum())
        assert torch.equal(lifted(now[name], grown[name])[mask], tensor.detach()[mask]), name
    assert changed > 100


def test_batchnorm_explores_with_running_statistics_when_asked():
    loop = Loop(norm="running")
    loop.until("explore")
    start = copied(dict(loop.iee.model.named_buffers()))
    norms = [m for m in loop.iee.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert not any(norm.training for norm in norms)
    assert loop.iee.model.conv1.training
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    assert all(torch.equal(b, start[n]) for n, b in wide.named_buffers())
    assert all(module.training for module in loop.iee.model.modules())
    batchwise = Loop().until("explore")
    start = copied(dict(batchwise.iee.model.named_buffers()))
    batchwise.run(1)
    now = dict(batchwise.iee.model.named_buffers())
    assert not torch.equal(now["bn.running_mean"], start["bn.running_mean"])


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_a_validation_while_exploring_leaves_the_next_network_in_training_mode(norm):
    torch.manual_seed(0)
    model = randomise(Residual(12)).train().float()
    graph = pk.trace(model, image().float())
    schedule = pk.IEESchedule(30, warmup=2, estimate=3, improve=2, explore=3, norm=norm)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    seen = set()
    for step in range(30):
        if iee.stage == "explore":
            iee.slim.eval()
        assert iee.model.training
        norms = [m for m in iee.model.modules() if isinstance(m, nn.BatchNorm2d)]
        frozen = norm == "running" and iee.stage == "explore"
        assert {m.training for m in norms} == {not frozen}
        seen.add(iee.stage)
        inputs, labels = batch(step, dtype=torch.float32)
        F.cross_entropy(iee.model(inputs), labels).backward()
        iee.step(optimizer)
    assert {"estimate", "explore"} <= seen


def test_a_loss_of_another_network_is_named():
    model = randomise(Residual(12)).train().float()
    graph = pk.trace(model, image().float())
    schedule = pk.IEESchedule(30, warmup=2, estimate=3, improve=2, explore=3)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    inputs, labels = batch(0, dtype=torch.float32)
    stale = iee.model
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def train():
        for _ in range(30):
            F.cross_entropy(stale(inputs), labels).backward()
            iee.step(optimizer)
            stale.zero_grad(set_to_none=True)

    with pytest.raises(UsageError, match=r"run the loss of every step on `iee\.model`"):
        train()
