"""Masked = slim, on random networks under random plans."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.core.plan import ChannelPlan, Cut
from prunekit.networks.slimming import WHOLE, kept, slim, slim_further
from prunekit.support.errors import ModelError, UsageError
from prunekit.tracing import trace
from support.iee_loop import belongs, lifted, tensors
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    Plain,
    PreActivation,
    Residual,
    Slopes,
    SqueezeExcite,
    Tokens,
    conv,
    image,
    randomise,
)
from support.random_nets import build, example, random_recipe
from support.slimming import check_slim

ACTIVATIONS = {
    "relu": lambda width: nn.ReLU(),
    "silu": lambda width: nn.SiLU(),
    "prelu": nn.PReLU,
    "one slope": lambda width: nn.PReLU(),
    "none": lambda width: nn.Identity(),
}


class Unit(nn.Module):
    """Convolution, perhaps a norm, an activation."""

    def __init__(self, cin, cout, norm=True, act="relu", stride=1, groups=1):
        super().__init__()
        self.conv = conv(cin, cout, stride=stride, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.act = ACTIVATIONS[act](cout)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class Block(nn.Module):
    def __init__(self, kind, cin, cout, norm, act):
        super().__init__()
        self.kind, self.width = kind, cout
        if kind == "conv":
            self.a = Unit(cin, cout, norm, act)
        elif kind == "residual":
            self.a, self.b = Unit(cin, cout, norm, act), Unit(cout, cout, norm, "none")
            self.shortcut = conv(cin, cout, 1) if cin != cout else nn.Identity()
        elif kind == "identity residual":
            self.a, self.b = Unit(cin, cout, norm, act), Unit(cout, cin, norm, "none")
            self.width = cin
        elif kind == "pre-activation":
            self.norm, self.a = nn.BatchNorm2d(cin), Unit(cin, cout, norm, act)
            self.b = conv(cout, cin)
            self.width = cin
        elif kind == "depthwise":
            self.a, self.b = Unit(cin, cin, norm, act, groups=cin), conv(cin, cout, 1)
        elif kind == "concat":
            self.a, self.width = Unit(cin, cout, norm, act), cin + cout
        elif kind == "SE":
            self.a = Unit(cin, cout, norm, act)
            self.down, self.up = conv(cout, 4, 1), conv(4, cout, 1)

    def forward(self, x):
        if self.kind == "conv":
            return self.a(x)
        if self.kind == "residual":
            return F.relu(self.b(self.a(x)) + self.shortcut(x))
        if self.kind == "identity residual":
            return F.relu(self.b(self.a(x)) + x)
        if self.kind == "pre-activation":
            return x + self.b(self.a(F.relu(self.norm(x))))
        if self.kind == "depthwise":
            return self.b(self.a(x))
        if self.kind == "concat":
            return torch.cat([x, self.a(x)], 1)
        x = self.a(x)
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Net(nn.Module):
    def __init__(self, stem, blocks, head):
        super().__init__()
        self.stem, width = Unit(3, stem), stem
        made = []
        for kind, cout, norm, act in blocks:
            made.append(Block(kind, width, cout, norm, act))
            width = made[-1].width
        self.blocks = nn.Sequential(*made)
        self.head = head
        # the dependency graph does not follow those: their groups are frozen
        self.flattens_a_concatenation = head == "flatten" and any(b[0] == "concat" for b in blocks)
        self.fc = (
            nn.Sequential(nn.Linear(width * 16, 7), nn.ReLU(), nn.Linear(7, 4))
            if head == "flatten"
            else nn.Linear(width, 4)
        )

    def forward(self, x):
        x = F.max_pool2d(self.blocks(F.avg_pool2d(self.stem(x), 2)), 2)
        x = F.adaptive_avg_pool2d(x, 4)
        return self.fc(x.flatten(1) if self.head == "flatten" else x.mean((2, 3)))


KINDS = [
    "conv",
    "residual",
    "identity residual",
    "pre-activation",
    "depthwise",
    "concat",
    "SE",
]
WIDTHS = st.integers(2, 9)
BLOCKS = st.tuples(
    st.sampled_from(KINDS), WIDTHS, st.booleans(), st.sampled_from(sorted(ACTIVATIONS))
)
NETS = st.builds(Net, WIDTHS, st.lists(BLOCKS, max_size=4), st.sampled_from(["flatten", "pool"]))
PLANS = st.tuples(st.floats(0.15, 1.0), st.integers(0, 999), st.sampled_from([1, 1, 2, 4]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(net=NETS, plan=PLANS)
def test_the_slim_network_is_the_masked_one(net, plan):
    model = randomise(net)
    graph = pk.trace(model, image(size=16))
    if not net.flattens_a_concatenation:
        kept_back = [g for g in graph.groups if not g.prunable]
        assert [g.reason for g in kept_back] == ["it is the model's output"]
    check_slim(model, graph, pk.ChannelPlan.random(graph, *plan))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(net=NETS, plan=PLANS)
def test_slimming_twice_is_slimming_once(net, plan):
    """A slim network is a model like any other: traced anew, its groups are the narrower ones."""
    model = randomise(net)
    graph = pk.trace(model, image(size=16))
    first = pk.ChannelPlan.random(graph, *plan)
    small = pk.slim(model, first)
    again = pk.trace(small, image(size=16))
    assert again.macs({}) == graph.macs(first.widths)
    check_slim(small, again, pk.ChannelPlan.random(again, 0.6, seed=3))


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_training_needs_and_modes_carry_over(keep):
    model = randomise(Net(8, [("residual", 8, True, "relu")], "pool")).train()
    model.stem.conv.weight.requires_grad_(False)
    graph = pk.trace(model, image(size=16))
    assert model.training
    assert not model.stem.conv.weight.requires_grad
    small = pk.slim(model, pk.ChannelPlan.random(graph, keep, seed=1))
    assert small.training
    assert not small.stem.conv.weight.requires_grad
    assert small.blocks[0].a.conv.weight.requires_grad
    small(image(2, size=16)).sum().backward()
    assert small.blocks[0].a.conv.weight.grad is not None


def test_a_feature_extractor_stays_in_its_mode():
    """Copies of it are in training mode."""
    from torchvision.models.feature_extraction import create_feature_extractor

    net = Net(8, [("residual", 8, True, "relu")], "pool").eval()
    model = create_feature_extractor(net, ["blocks.0"]).eval()
    graph = pk.trace(model, image(size=16))
    assert any(group.prunable for group in graph.groups)
    small = pk.slim(model, pk.ChannelPlan.random(graph, 0.5, seed=1))
    assert not any(module.training for module in small.modules())


def test_memory_formats_carry_over():
    model = Net(8, [("residual", 8, True, "relu")], "pool").to(memory_format=torch.channels_last)
    graph = pk.trace(model, image(size=16))
    small = pk.slim(model, pk.ChannelPlan.random(graph, 0.5, seed=1))
    four = [p for p in small.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


def test_networks_without_values_and_other_modes():
    model = Net(8, [("residual", 8, True, "relu")], "pool").eval()
    graph = pk.trace(model, image(size=16))
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)
    shapes = [p.shape for p in pk.slim(model, plan).parameters()]
    assert [p.shape for p in pk.slim(copy.deepcopy(model).to("meta"), plan).parameters()] == shapes
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = pk.trace(model, image(size=16))
        small = pk.slim(model, plan)
    assert [(g.id, g.size, g.reason) for g in again.groups] == [
        (g.id, g.size, g.reason) for g in graph.groups
    ]
    small(image(2, size=16)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_a_dense_plan_changes_nothing():
    model = randomise(Net(6, [("SE", 8, True, "relu")], "flatten"))
    graph = pk.trace(model, image(size=16))
    plan = pk.ChannelPlan.dense(graph)
    assert plan.is_dense
    small = pk.slim(model, plan)
    for name, tensor in model.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor)


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(), image())


def test_slimming_refuses_what_does_not_fit(graph):
    plan = ChannelPlan.random(graph, 0.5, seed=3)
    with pytest.raises(
        UsageError, match=r"the plan is for another model \(fingerprint .* this Plain"
    ):
        pk.slim(Plain(), plan)
    model = Residual()
    for cut, text in (
        ({"ghost": Cut((0,))}, "the plan cuts 'ghost', which Residual does not have"),
        ({"stem": Cut((8,))}, "cannot remove channels 8 to 8 of 8"),
        ({"stem": Cut((-1,))}, "cannot remove channels -1 to -1 of 8"),
        ({"stem": Cut(tuple(range(8)))}, "cannot remove channels 0 to 7 of 8"),
    ):
        with pytest.raises(ModelError, match=text):
            pk.slim(model, ChannelPlan(plan.fingerprint, plan.keep, cut, plan.sizes))


@pytest.mark.parametrize(
    "make",
    [Residual, PreActivation, Depthwise, Concat, SqueezeExcite, Flatten, Slopes, Tokens],
    ids=lambda make: make.__name__,
)
def test_an_element_is_active_when_all_its_channels_are(make):
    model = randomise(make())
    graph = pk.trace(model, torch.randn(1, 5, 6) if make is Tokens else image())
    plans = [pk.ChannelPlan.random(graph, 0.5, seed) for seed in range(4)]
    some = plans[0]
    both = {g: sorted({*k} | {*plans[1].keep[g]}) for g, k in some.keep.items()}
    plans += [pk.ChannelPlan.dense(graph), wider := pk.ChannelPlan.from_keep(graph, both)]
    assert not some.is_dense
    for plan in plans:
        parts, small = kept(model, plan), tensors(pk.slim(model, plan))
        inside = belongs(model, graph, plan)
        assert parts.keys() <= inside.keys()
        for name, tensor in tensors(model).items():
            part = parts.get(name, WHOLE)
            found = torch.zeros_like(tensor)
            part.put_(found, torch.ones_like(small[name]))
            assert torch.equal(found.bool(), inside[name]), name
            assert torch.equal(
                lifted(inside[name], small[name])[inside[name]], tensor[inside[name]]
            )
            assert torch.equal(part.take(tensor), small[name])
    # the same elements, counted in a network that lacks others
    inner, outer = kept(model, some), kept(model, wider)
    for name, tensor in tensors(model).items():
        within = inner.get(name, WHOLE).within(outer.get(name, WHOLE))
        assert torch.equal(
            within.take(outer.get(name, WHOLE).take(tensor)), inner.get(name, WHOLE).take(tensor)
        )


@pytest.mark.parametrize("heads", ["whole", "width"])
@pytest.mark.parametrize("seed", range(8))
def test_cutting_a_slim_network_further_is_cutting_once(seed, heads):
    """Random networks with everything the tracer knows, cut twice."""
    recipe = random_recipe(seed)
    model = build(recipe).eval()
    graph = trace(model, example(recipe), heads=heads)
    plan = ChannelPlan.random(graph, 0.7, seed)
    rng = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        had = plan.keep[group.id]
        count = int(rng.integers(1, len(had) + 1)) if group.prunable else len(had)
        keep[group.id] = sorted(rng.permutation(had)[:count].tolist())
    narrower = ChannelPlan.from_keep(graph, keep)
    twice = slim_further(slim(model, plan), graph, plan, narrower).state_dict()
    once = slim(model, narrower).state_dict()
    assert twice.keys() == once.keys()
    for name, tensor in once.items():
        # attentions that lose width are scaled in each cut
        torch.testing.assert_close(twice[name], tensor, rtol=1e-6, atol=0, msg=name)
    with pytest.raises(UsageError, match="keeps what is gone already"):
        slim_further(slim(model, narrower), graph, narrower, ChannelPlan.dense(graph))
