"""Modules that are called again, shared, tied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from support.hostile import IDS, IMAGE, OUTPUT, Case, Net, check, line, net, same, steps, wide
from support.nets import conv


class TwoNames(Net):
    """One layer, or a block of them, under two names."""

    def __init__(self, layer):
        super().__init__(lambda s, x: s.q(s.p(x)))
        self.p = layer
        self.q = layer


class Tied(Net):
    def __init__(self, tie):
        super().__init__(lambda s, x: s.q(F.relu(s.p(x))))
        self.p, self.q = same(), same()
        tie(self.p, self.q)


def share(name):
    return lambda p, q: setattr(p, name, getattr(q, name))


def share_storage(p, q):
    p.weight = nn.Parameter(q.weight.data)


class Language(nn.Module):
    """A table of embeddings, a residual block, and what reads them."""

    def __init__(self, head="linear", **table):
        super().__init__()
        self.embed = nn.Embedding(20, 8, **table)
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.how = head
        if head in ("layer", "tied layer", "positions"):
            self.head = nn.Linear(8, 20, bias=False)
        if head == "tied layer":
            self.head.weight = self.embed.weight
        if head == "positions":
            self.position, self.first = (nn.Parameter(torch.randn(1, n, 8)) for n in (10, 1))

    def forward(self, ids):
        x = self.embed(ids)
        if self.how == "positions":
            x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
            x = x + self.position[:, : x.shape[1]]
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        if self.how == "linear":
            return F.linear(x, self.embed.weight)
        return x @ self.embed.weight.t() if self.how == "product" else self.head(x)


def language(prunable, frozen=None, **arguments):
    others = [IDS[:1, :3], IDS.flip(1)]
    return Case(lambda: Language(**arguments), IDS, set(prunable.split()), frozen or {}, others)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, weight):
        return weight * self.gain


def parametrized(layer, by):
    parametrize.register_parametrization(layer, "weight", by)
    return layer


SHARED = {
    "twice in a row": net(lambda s, x: s.p(s.p(x)), "a b", p=same),
    "twice, other size": net(
        lambda s, x: s.p(x) + F.interpolate(s.p(F.avg_pool2d(x, 2)), scale_factor=2.0),
        "a b p",
        p=same,
    ),
    "in two places": net(
        lambda s, x: s.p(s.q(x)) + s.p(s.r(x)),
        "a b p q",
        p=lambda: conv(5, 8),
        q=lambda: conv(8, 5),
        r=lambda: conv(8, 5),
    ),
    "never called": net(lambda s, x: x, "a b", note="not used in evaluation mode: p", p=same),
    "a layer of two names": Case(lambda: TwoNames(same()), IMAGE, {"a", "b"}),
    "a block of two names": Case(
        lambda: TwoNames(nn.Sequential(same(), nn.ReLU(), nn.BatchNorm2d(8), same())), IMAGE
    ),
    "a depthwise layer of two names": Case(lambda: TwoNames(conv(8, 8, groups=8)), IMAGE),
    "weights": Case(lambda: Tied(share("weight")), IMAGE, {"a", "b"}),
    "biases": Case(lambda: Tied(share("bias")), IMAGE, {"a", "b", "p"}),
    "storage": Case(lambda: Tied(share_storage), IMAGE, {"a", "b", "p", "q"}),
    "convolution by a layer's weight": net(
        lambda s, x: F.conv2d(s.p(x), s.q.weight[:, :, None, None]),
        "a b p q",
        p=same,
        q=lambda: nn.Linear(8, 8),
    ),
    "transposed use": line(lambda s, x: F.linear(s.p(x), s.p.weight.t()), "a b p", p=wide),
    "head of its table": language("up down", {}, head="tied layer"),
    "table as a weight": language("up down", {}, head="linear"),
    "table transposed": language("up down", {}, head="product"),
    "positions and a class token": language("up down", {"head": OUTPUT}, head="positions"),
    "padding": language("up down", {"head": OUTPUT}, head="layer", padding_idx=0),
    "table with a largest norm": language(
        "up", {"down": "embedding_renorm_"}, head="layer", max_norm=1.0
    ),
    "part of a weight": net(
        lambda s, x: F.conv2d(x[:, :4], s.p.weight[:, :4], s.p.bias, padding=1), "b p", p=same
    ),
    "forward not called": net(
        lambda s, x: F.conv2d(x, s.p.weight, s.p.bias, padding=1), "a b p", p=same
    ),
    "weight clamped in forward": net(
        steps("s.p.weight.data.clamp_(-0.1, 0.1)", "x = s.p(x)"), "a b p", p=same
    ),
    "weight norm": net(
        lambda s, x: s.p(x), "a b p", p=lambda: parametrizations.weight_norm(same())
    ),
    "spectral norm": net(
        lambda s, x: s.p(x), "b", p=lambda: parametrizations.spectral_norm(same())
    ),
    "old spectral norm": net(
        lambda s, x: s.p(x),
        "b",
        {"p": "multiplies vectors"},
        p=lambda: nn.utils.spectral_norm(same()),
    ),
    "orthogonal": line(lambda s, x: s.p(x), "b", p=lambda: parametrizations.orthogonal(wide())),
    "parametrized by a gain": net(
        lambda s, x: s.p(x),
        None,
        {"p": "Gain does not implement right_inverse"},
        p=lambda: parametrized(same(), Gain()),
    ),
    "symmetric": line(lambda s, x: s.p(x), "b", p=lambda: parametrized(wide(), Symmetric())),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated")
@pytest.mark.parametrize("name", SHARED)
def test_called_again_shared_and_tied(name):
    check(SHARED[name])
