"""Which way it goes depends on values, shapes, counts, or chance."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.hostile import IMAGE, IMAGES, TOKENS, Case, Net, check, either, net, same
from support.nets import conv, image


def branch(condition, prunable="b p", frozen=""):
    return net(either(condition), prunable, frozen, others=IMAGES, p=same, q=same)


def one_or_none(s, x):
    return s.p(x) if x[:, 0].mean() > 0.4 else x


def nested(s, x):
    if x[:, 0].mean() > 0.3:
        return s.p(x) if x[:, 1].mean() > 0.3 else s.q(x)
    return x


def times(s, x):
    for _ in range(int(x.abs().sum()) % 3 + 1):
        x = F.relu(s.p(x))
    return x


def until(s, x):
    count = 0
    while x.abs().max() > 0.5 and count < 5:
        x, count = 0.5 * s.p(x), count + 1
    return x


def halting(s, x):
    for layer in s.p:
        x = F.relu(layer(x))
        if x.mean() > 0.2:
            break
    return x


def skipping(s, x):
    for i, layer in enumerate(s.p):
        if x.mean() > 0.1 * i:
            x = F.relu(layer(x))
    return x


def in_an_order(s, x):
    for i in x.mean((0, 2, 3))[:3].argsort().tolist():
        x = F.relu(s.p[i](x))
    return x


def literal_in_a_branch(s, x):
    return x * torch.linspace(0, 1, 8).view(1, 8, 1, 1) if x.mean() > 0.35 else x


def tries(s, x):
    try:
        return s.p(x)
    except RuntimeError:
        return s.q(x[:, :3])


def checks(s, x):
    if torch.isnan(x).any():
        raise ValueError("not a number")
    return x


def layers(count):
    return lambda: nn.ModuleList(same() for _ in range(count))


class EarlyExit(Net):
    def __init__(self):
        super().__init__()
        self.exit = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        out = self.exit(x.mean((2, 3)))
        if out.max() > 0.3:
            return out
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Experts(nn.Module):
    """A mixture of experts; some of them get no token of the example."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.embed, self.gate, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(6)
        )

    def forward(self, x):
        x = self.embed(x).flatten(0, 1)
        weights, top = self.gate(x).softmax(-1).topk(1)
        return self.head(getattr(self, self.form)(x, weights, top[:, 0]))

    def put(self, x, weights, top):
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (top == i).nonzero()[:, 0]
            if rows.numel():
                out[rows] = weights[rows] * expert(x[rows])
        return out

    def add(self, x, weights, top):
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (top == i).nonzero()[:, 0]
            if rows.numel():
                out.index_add_(0, rows, weights[rows] * expert(x[rows]))
        return out

    def ordered(self, x, weights, top):
        rows = [(top == i).nonzero()[:, 0] for i in range(6)]
        outs = [self.experts[i](x[r]) for i, r in enumerate(rows) if r.numel()]
        return torch.cat(outs)[torch.cat(rows).argsort()]

    def by_number(self, x, weights, top):
        return torch.stack([self.experts[int(t)](v) for v, t in zip(x, top, strict=True)])

    def by_mask(self, x, weights, top):
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out[top == i] = expert(x[top == i])
        return out

    def dense(self, x, weights, top):
        return sum(e(x) * (top == i)[:, None] * weights for i, e in enumerate(self.experts))


def experts(form, frozen=None, prunable=None):
    others = [TOKENS[1:], *(torch.randn(1, 5, 6) for _ in range(6))]
    return Case(lambda: Experts(form), TOKENS[:1], prunable, frozen or {}, others)


CONTROL = {
    "truth of a mean": branch(lambda s, x: x.mean() > 0.4, frozen="takes a mean over channels"),
    "truth of one value": branch(
        lambda s, x: x.flatten()[0] > 0.2, frozen="takes one channel by number"
    ),
    "number": branch(lambda s, x: x[:, 0].mean().item() > 0.45),
    "whole number": branch(lambda s, x: int(x.flatten().argmax()) % 2 == 0),
    "list": branch(lambda s, x: sum(x.flatten().tolist()) > 300, prunable=None),
    "NumPy": branch(
        lambda s, x: x.numpy().mean() > 0.4, None, {"a": "did not run and may need it"}
    ),
    "array": branch(
        lambda s, x: np.asarray(x).mean() > 0.4, None, {"a": "the way of the model depends on"}
    ),
    "any": branch(lambda s, x: (x > 3).any()),
    "equal": branch(lambda s, x: torch.equal(x[0], x[1]), "a b p"),
    "almost equal": branch(lambda s, x: torch.allclose(x[0], x[1], atol=3), "a b p"),
    "how many": branch(lambda s, x: len(x[x > 1.5]) > 40),
    "truth of a number": branch(lambda s, x: x.clamp_min(0).sub(2.5).relu().sum(), None),
    "one layer or none": net(one_or_none, "b", "by number", others=IMAGES, p=same),
    "a branch in a branch": net(nested, None, others=IMAGES, p=same, q=same),
    "count from data": net(times, "a b", others=IMAGES, p=same),
    "while": net(until, "b", others=IMAGES, p=same),
    "early exit": Case(EarlyExit, IMAGE, {"a", "b"}, {"exit": ""}, IMAGES),
    "halting": net(halting, None, others=IMAGES, p=layers(4)),
    "skipping": net(skipping, "b", others=IMAGES, p=layers(12)),
    "order from data": net(in_an_order, None, others=IMAGES, p=layers(3)),
    "literal in a branch": net(literal_in_a_branch, "b", others=IMAGES),
    "try and except": net(tries, "a b p", note="q", p=same, q=lambda: conv(3, 8)),
    "raises": net(checks, "b", "takes a any over channels"),
    "where of samples": net(
        lambda s, x: torch.where(x.amax((1, 2, 3), keepdim=True) > 3, s.p(x), s.q(x)),
        "b p",
        "over channels",
        others=IMAGES,
        p=same,
        q=same,
    ),
    "where of positions": net(lambda s, x: torch.where(x > 0.3, x, s.p(x)), "a b", p=same),
    "layer of training": net(lambda s, x: s.p(x) if s.training else x, "a b", note="p", p=same),
    "literal of training": net(
        lambda s, x: x * torch.ones(1, 8, 1, 1) if s.training else x, "b", "in training mode"
    ),
    "order of training": net(
        lambda s, x: s.p(s.q(x)) if s.training else s.q(s.p(x)),
        "b",
        {"p": "in training mode"},
        p=same,
        q=same,
    ),
    "dropped layer": net(
        lambda s, x: s.p(x) if random.random() < 0.5 else x,
        "",
        "depends on Python's chance",
        p=same,
    ),
    "dropped layer of NumPy": net(
        lambda s, x: s.p(x) if np.random.rand() < 0.5 else x,  # noqa: NPY002
        "",
        "depends on Python's chance",
        p=same,
    ),
    "dropped layer in training": net(
        lambda s, x: x if s.training and random.random() < 0.5 else s.p(x), "a b p", p=same
    ),
    "dropped samples": net(
        lambda s, x: x + s.p(x) * (torch.rand(len(x), 1, 1, 1) > 0.5), "a b", p=same
    ),
    "noise": net(lambda s, x: x + 0.1 * torch.randn_like(x), "b", "zeroing"),
    "batch": net(
        lambda s, x: s.p(x) if x.shape[0] > 1 else s.q(x),
        "a b p",
        others=[IMAGE[:1], image(3)],
        p=same,
        q=same,
    ),
    "picture's size": net(
        lambda s, x: s.p(x) if x.shape[-1] > 8 else s.q(x),
        "a b p",
        others=[image(size=12)],
        p=same,
        q=same,
    ),
    "experts by rows": experts("put", {"embed": "picks positions of it"}),
    "experts added": experts("add", {"embed": "index_add_"}),
    "experts put in order": experts("ordered", {"embed": "did not run and may need it"}),
    "experts by number": experts("by_number"),
    "experts by mask": experts("by_mask", {"embed": "picks positions of it"}),
    "all experts": experts("dense", {"gate": "compares channels"}),
}


@pytest.mark.parametrize("name", CONTROL)
def test_which_way_it_goes(name):
    check(CONTROL[name])
