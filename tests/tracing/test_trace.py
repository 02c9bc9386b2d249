"""Every structure is followed or frozen with a reason; never is a wrong model made."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import prunekit as pk
from prunekit.support.errors import ModelError
from prunekit.tracing.values import tensors
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
    randomise,
)
from support.structures import IMAGE, OUTPUT, Chunks


class Auxiliary(Plain):
    """A head that only training uses."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.c1(x))
        out = self.fc(F.relu(self.c2(x)).mean((2, 3)))
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


class Targets(Auxiliary):
    """As a detector: training needs a second input."""

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be None in training mode")
        return super().forward(x)


class Twice(nn.Module):
    """One layer called twice in a row."""

    def __init__(self):
        super().__init__()
        self.c1, self.shared, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.c1(x))))))
        return self.fc(x.mean((2, 3)))


class Heads(nn.Module):
    """One head on two levels of features, as in detectors."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.head = conv(3, 8), conv(8, 8, stride=2), conv(8, 6)
        self.out = conv(6, 4, 1)

    def forward(self, x):
        first = F.relu(self.c1(x))
        levels = first, F.relu(self.c2(first))
        return [self.out(F.relu(self.head(level))) for level in levels]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 8), conv(2, 8), conv(8, 6), nn.Linear(6, 4)

    def forward(self, left, right):
        x = F.relu(self.c(F.relu(self.a(left) + self.b(right))))
        return {"logits": self.fc(x.mean((2, 3)))}


class Scaled(Plain):
    """A parameter, or a buffer, outside any layer."""

    def __init__(self, shape, kind):
        super().__init__()
        if kind == "buffer":
            self.register_buffer("scale", torch.rand(shape))
        else:
            self.scale = nn.Parameter(torch.rand(shape))

    def forward(self, x):
        x = F.relu(self.c1(x) * self.scale)
        return self.fc(F.relu(self.c2(x)).mean((2, 3)))


class Middle(nn.Module):
    """Something between two convolutions, then two more and a head."""

    def __init__(self, middle, wide=8):
        super().__init__()
        self.a, self.m = conv(3, 8), middle
        self.b, self.c, self.fc = conv(wide, 7, 1), conv(7, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.m(F.relu(self.a(x))))
        return self.fc(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Between(nn.Module):
    """Something between two linear layers over tokens."""

    def __init__(self, middle):
        super().__init__()
        self.a, self.m, self.b, self.c = (
            nn.Linear(6, 12),
            middle,
            nn.Linear(12, 10),
            nn.Linear(10, 3),
        )

    def forward(self, x):
        return self.c(F.relu(self.b(self.m(self.a(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.project = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.project(mixed.reshape(batch, count, width))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class LibraryAttention(Attention):
    def __init__(self):
        super().__init__()
        self.qkv = self.project = nn.Identity()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class Leaves(Plain):
    """An intermediate feature is an output too."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        x = F.relu(self.c1(x))
        return self.fc(F.relu(self.c2(x)).mean((2, 3))), self.how(x)


class Tied(nn.Module):
    """Two convolutions share one weight: in a row, or in residual blocks."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual
        self.c1, self.c2, self.c3, self.fc = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 5)
        self.c3.weight = self.c2.weight

    def forward(self, x):
        x = F.relu(self.c1(x))
        for layer in (self.c2, self.c3):
            x = F.relu(x + layer(x)) if self.residual else F.relu(layer(x))
        return self.fc(x.mean((2, 3)))


class OneDimension(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = (
            nn.Conv1d(3, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 6, 3),
        )
        self.f, self.fc = nn.Linear(36, 10), nn.Linear(10, 2)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.bn(self.a(x)))))
        return self.fc(F.relu(self.f(x.flatten(1))))


def shuffled(x):
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


def asserting(x):
    assert x.shape[1] == 8
    return x


class Spatial(Middle):
    def __init__(self):
        super().__init__(conv(2, 1))

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = self.m(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return self.fc(F.relu(self.c(F.relu(self.b(x * gate)))).mean((2, 3)))


class Functional(Plain):
    """A convolution that is no module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, 1, 1))

    def forward(self, x):
        x = F.relu(F.conv2d(F.relu(self.c2(F.relu(self.c1(x)))), self.weight))
        return self.fc(x.mean((2, 3)))


class Placed(Plain):
    """Adds what it has learned of positions."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return super().forward(x + self.place)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.rnn = nn.Linear(6, 5), nn.LSTM(5, 8, batch_first=True)
        self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(self.rnn(self.a(x))[0][:, -1])))


def frozen(module):
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def widened(model, example, graph, plans=12):
    """Slim under many plans and compare with the masked network, in float64."""
    model = randomise(copy.deepcopy(model)).double()
    inputs = example if isinstance(example, (tuple, dict)) else (example,)

    def run(module):
        with torch.no_grad():
            if isinstance(inputs, dict):
                return tensors(module(**{k: v.double() for k, v in inputs.items()}))
            return tensors(module(*(v.double() for v in inputs)))

    for seed in range(plans):
        plan = pk.ChannelPlan.random(graph, 0.3 + 0.1 * (seed % 6), seed)
        expected = run(pk.mask_(copy.deepcopy(model), plan))
        found = run(pk.slim(model, plan))
        assert len(expected) == len(found)
        for left, right in zip(expected, found, strict=True):
            assert left.shape == right.shape
            if left.is_floating_point():
                assert float((left - right).abs().max() / left.abs().max()) < 2e-5
            else:
                assert torch.equal(left, right)


TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
SERIES = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))

# name -> (model, example, groups that can be pruned, {group: part of the reason it cannot})
CASES = {
    "residual": (Residual, IMAGE, {"stem", "conv1"}, {"fc": OUTPUT}),
    "pre-activation": (PreActivation, IMAGE, {"stem", "conv1"}, {}),
    "depthwise": (Depthwise, IMAGE, {"conv", "point", "last"}, {}),
    "concat": (Concat, IMAGE, {"a", "b", "c"}, {}),
    "SE": (SqueezeExcite, IMAGE, {"a", "down", "c"}, {}),
    "SE of linear layers": (lambda: SqueezeExcite(True), IMAGE, {"a", "down", "c"}, {}),
    "flatten": (Flatten, IMAGE, {"a", "f"}, {}),
    "slopes": (Slopes, IMAGE, {"a", "c"}, {}),
    "tokens": (Tokens, TOKENS, {"a", "b"}, {}),
    "unused auxiliary head": (Auxiliary, IMAGE, {"c1", "c2"}, {}),
    "training needs targets": (Targets, IMAGE, {"c1", "c2"}, {}),
    "called twice": (Twice, IMAGE, {"c1"}, {}),
    "shared head": (Heads, IMAGE, {"c1", "head"}, {"out": OUTPUT}),
    "tuple of inputs": (TwoInputs, (IMAGE, IMAGE[:, :2]), {"a", "c"}, {"fc": OUTPUT}),
    "dict of inputs": (TwoInputs, {"right": IMAGE[:, :2], "left": IMAGE}, {"a", "c"}, {}),
    "frozen parameters": (lambda: frozen(Plain()), IMAGE, {"c1", "c2"}, {"fc": OUTPUT}),
    "parameter per channel": (
        lambda: Scaled((8, 1, 1), "parameter"),
        IMAGE,
        {"c1", "c2"},
        {},
    ),
    "one parameter for all": (lambda: Scaled((1,), "parameter"), IMAGE, {"c1", "c2"}, {}),
    "buffer per channel": (
        lambda: Scaled((8, 1, 1), "buffer"),
        IMAGE,
        {"c1", "c2"},
        {},
    ),
    "grouped": (
        lambda: Middle(conv(8, 8, groups=2)),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "channel multiplier": (
        lambda: Middle(conv(8, 16, groups=8), 16),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "transposed": (
        lambda: Middle(nn.ConvTranspose2d(8, 8, 2, 2)),
        IMAGE,
        {"a", "b", "c", "m"},
        {},
    ),
    "GroupNorm": (lambda: Middle(nn.GroupNorm(2, 8)), IMAGE, {"a", "b", "c"}, {}),
    "InstanceNorm": (
        lambda: Middle(nn.InstanceNorm2d(8)),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "norm without affine": (
        lambda: Middle(nn.BatchNorm2d(8, affine=False)),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "norm without statistics": (
        lambda: Middle(nn.BatchNorm2d(8, track_running_stats=False)),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "identity and dropout": (
        lambda: Middle(nn.Sequential(nn.Identity(), nn.Dropout(), nn.Identity())),
        IMAGE,
        {"a", "b", "c"},
        {},
    ),
    "LayerNorm": (lambda: Between(nn.LayerNorm(12)), TOKENS, {"a", "b"}, {}),
    "LayerNorm of what comes": (
        lambda: Between(Calls(lambda x: F.layer_norm(x, x.shape[-1:]))),
        TOKENS,
        {"b"},
        {"a": "without a LayerNorm module"},
    ),
    "softmax over channels": (
        lambda: Between(Calls(lambda x: x.softmax(-1))),
        TOKENS,
        {"b"},
        {"a": "compares channels"},
    ),
    "attention": (
        Attention,
        TOKENS,
        {"up"},
        {"embed": "the slim network fails", "qkv": "the slim network fails"},
    ),
    "library attention": (LibraryAttention, TOKENS, {"up"}, {"embed": "MultiheadAttention"}),
    "recurrent": (Recurrent, TOKENS, {"b"}, {"a": "LSTM"}),
    "feature is an output": (lambda: Leaves(lambda x: x), IMAGE, {"c2"}, {"c1": OUTPUT}),
    "detached feature is an output": (
        lambda: Leaves(lambda x: x.detach()),
        IMAGE,
        {"c2"},
        {"c1": OUTPUT},
    ),
    "index of a feature is an output": (
        lambda: Leaves(lambda x: x.flatten(1).argmax(1)),
        IMAGE,
        {"c2"},
        {"c1": "argmax over channels"},
    ),
    "tied in a row": (lambda: Tied(False), IMAGE, {"c1"}, {}),
    "tied in residual blocks": (lambda: Tied(True), IMAGE, {"c1"}, {}),
    "one dimension": (OneDimension, SERIES, {"a", "b", "f"}, {}),
    "chunk": (Chunks, IMAGE, {"a", "b"}, {}),
    "chunk of two and two": (lambda: Chunks(4), IMAGE, {"a", "b"}, {}),
    "chunk of one and one": (lambda: Chunks(2), IMAGE, {"b"}, {"a": "only go together"}),
    "split": (
        lambda: Chunks(split=lambda x: x.split(4, 1)),
        IMAGE,
        {"b"},
        {"a": "the slim network fails"},
    ),
    "gated halves": (lambda: Chunks(gated=True), IMAGE, {"a", "b"}, {}),
    "shuffle": (lambda: Middle(Calls(shuffled)), IMAGE, {"a", "b", "c"}, {}),
    "flip": (lambda: Middle(Calls(lambda x: x.flip(1))), IMAGE, {"b", "c"}, {"a": "by number"}),
    "division by the width": (
        lambda: Middle(Calls(lambda x: x / x.shape[1])),
        IMAGE,
        {"b", "c"},
        {"a": "zeroing"},
    ),
    "assertion on the width": (
        lambda: Middle(Calls(asserting)),
        IMAGE,
        {"b", "c"},
        {"a": "the slim network fails: assert"},
    ),
    "spatial attention": (Spatial, IMAGE, {"b", "c"}, {"a": "takes a mean over channels"}),
    "functional convolution": (
        Functional,
        IMAGE,
        {"c1", "c2"},
        {},
    ),
    "weight norm": (lambda: Middle(weight_norm(conv(8, 8))), IMAGE, {"a", "m", "b", "c"}, {}),
    "spectral norm": (
        lambda: Middle(spectral_norm(conv(8, 8))),
        IMAGE,
        {"b", "c"},
        {"a": "", "m": "the slim network fails"},
    ),
    "an input that shows nothing": (Residual, torch.zeros(1, 3, 8, 8), {"stem", "conv1"}, {}),
    "half precision": (lambda: Residual().bfloat16(), IMAGE.bfloat16(), {"stem", "conv1"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_structure_is_followed_or_frozen_and_never_wrong(name):
    make, example, prunable, reasons = CASES[name]
    torch.manual_seed(0)
    model = randomise(make())
    graph = pk.trace(model, example)
    assert {g.id for g in graph.groups if g.prunable} == prunable
    for group, reason in reasons.items():
        found = graph.group(group)
        assert not found.prunable
        assert found.reason
        assert reason in found.reason
    assert all(bool(g.reason) != g.prunable for g in graph.groups)
    widened(model, example, graph)


def test_the_model_is_untouched():
    model = Residual().train()
    model.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pk.trace(model, IMAGE)
    assert model.training
    assert not model.conv1.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_tied_weights_stay_tied():
    model = randomise(Tied(True))
    graph = pk.trace(model, IMAGE)
    small = pk.slim(model, pk.ChannelPlan.random(graph, 0.5, seed=1))
    assert small.c3.weight is small.c2.weight
    assert small.c2.weight.shape[0] < 8
    assert model.c3.weight is model.c2.weight


def test_calls_and_shapes_of_layers():
    graph = pk.trace(Heads(), IMAGE)
    layers = {layer.name: layer for layer in graph.layers}
    assert layers["head"].calls == 2
    assert layers["head"].shape.further == (((4, 4), (4, 4)),)
    assert str(layers["head"].shape).startswith("conv 3x3 8x8 4x4")
    assert layers["head"].macs(5, 6) == 5 * 9 * 6 * (8 * 8 + 4 * 4)
    assert layers["c2"].shape.stride == (2, 2)
    assert layers["c2"].shape.out_hw == (4, 4)
    assert layers["c1"].macs(3, 8) == 3 * 9 * 8 * 64
    assert layers["c1"].params(3, 8) == 3 * 9 * 8 + 8
    assert str(layers["c2"].shape) == "conv 3x3/2 8x8->4x4 +relu"
    depthwise = {layer.name: layer for layer in pk.trace(Depthwise(), IMAGE).layers}["depth"]
    assert depthwise.kind == "depthwise"
    assert depthwise.macs(8, 8) == 9 * 8 * 64


def test_notes_say_what_evaluation_does_not_show():
    assert pk.trace(Auxiliary(), IMAGE).notes == ("not used in evaluation mode: aux",)
    notes = pk.trace(LibraryAttention(), TOKENS).notes
    assert notes == ("its cost is not counted: attend (MultiheadAttention)",)
    assert "the model itself (Functional)" in pk.trace(Functional(), IMAGE).notes[0]
    assert pk.trace(Placed(), IMAGE).notes == ()


def test_what_cannot_be_traced_is_said_in_one_line():
    with pytest.raises(ModelError, match="Plain refuses input 1x4x8x8: RuntimeError: Given groups"):
        pk.trace(Plain(), torch.randn(1, 4, 8, 8))

    class Uncopyable(Plain):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    with pytest.raises(ModelError, match="Uncopyable cannot be copied: TypeError: no copies"):
        pk.trace(Uncopyable(), IMAGE)


class Mixed(nn.Module):
    """A one-channel convolution over channels, and channels that a sum keeps together."""

    def __init__(self):
        super().__init__()
        self.one, self.over, self.two = conv(3, 8), nn.Conv1d(1, 1, 3, padding=1), conv(8, 4)

    def forward(self, x):
        x = self.one(x)
        gate = self.over(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return self.two(x * gate.sigmoid()[:, :, None, None])


def test_what_ran_is_not_said_to_be_idle():
    graph = pk.trace(Mixed(), IMAGE)
    assert not [note for note in graph.notes if "over" in note]
