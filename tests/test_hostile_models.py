"""Networks that try to break tracing: handled, frozen with a reason, or refused; never wrong.

Every network is slimmed by several plans and compared with the masked one, on inputs of its own
and on those that take another branch, or have another size.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_nets import Plain, conv, image, randomise
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from prunekit.networks.running import each
from prunekit.support.errors import PrunekitError
from prunekit.tracing.values import comparable

OUTPUT = "it is the model's output"
IMAGE = image(2)
IMAGES = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
SHORT = [TOKENS[:1, :3]]
IDS = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(1))


# --- how a case is checked ----------------------------------------------------------------------


@dataclass
class Case:
    """A network, what of it can be pruned (None: whatever), and parts of the others' reasons."""

    make: object
    example: object = None
    prunable: set[str] | None = None
    frozen: dict[str, str] = field(default_factory=dict)
    others: object = ()
    note: str = ""


class Net(nn.Module):
    """Something between two convolutions; ``wide`` is how many channels come out of it."""

    def __init__(self, how=None, wide=8, **own):
        super().__init__()
        self.a, self.b, self.fc = conv(3, 8), conv(wide, 6), nn.Linear(6, 4)
        self.how = how
        for name, module in own.items():
            setattr(self, name, module)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(self.how(self, x) if self.how else x))
        return self.fc(x.mean((2, 3)))


class Line(nn.Module):
    """Something between two linear layers over tokens."""

    def __init__(self, how=None, wide=12, **own):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(wide, 10), nn.Linear(10, 3)
        self.how = how
        for name, module in own.items():
            setattr(self, name, module)

    def forward(self, x):
        x = self.a(x)
        return self.c(F.relu(self.b(self.how(self, x) if self.how else x)))


def net(how, prunable, frozen="", wide=8, others=(), note="", **own):
    """A case of ``Net``; a text says why its first layer's channels stay."""
    frozen = {"a": frozen} if isinstance(frozen, str) and frozen else frozen or {}
    return Case(
        lambda: Net(how, wide, **{name: make() for name, make in own.items()}),
        IMAGE,
        None if prunable is None else set(prunable.split()),
        frozen,
        others,
        note,
    )


def line(how, prunable, frozen="", wide=12, others=SHORT, note="", **own):
    """A case of ``Line``."""
    case = net(how, prunable, frozen, wide, others, note)
    case.make = lambda: Line(how, wide, **{name: make() for name, make in own.items()})
    case.example = TOKENS
    return case


def same():
    return conv(8, 8)


def wide():
    return nn.Linear(12, 12)


def parameter(*shape):
    return lambda: nn.Parameter(torch.randn(shape))


def run(model, example):
    """What the model gives, with the same chance every time."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what a network draws from
    with torch.no_grad():
        out = model(**example) if isinstance(example, dict) else model(*example)
    return comparable(out)


def runs(model, example):
    try:
        run(copy.deepcopy(model), example)
    except Exception:
        return False
    return True


def double(example):
    return each(example, lambda t: t.double() if t.is_floating_point() else t)


def noise(example, seed):
    generator = torch.Generator().manual_seed(seed)

    def convert(value):
        if not value.is_floating_point() or value.layout != torch.strided:
            return value
        return torch.randn(value.shape, generator=generator).to(value.dtype)

    return each(example, convert)


def plans(graph):
    """Random ones, each group alone, and all as narrow as they may get."""
    prunable = [group for group in graph.groups if group.prunable]
    yield from (pk.ChannelPlan.random(graph, 0.3 + 0.2 * seed, seed) for seed in range(3))
    for group in prunable:
        kept = np.random.default_rng(1).permutation(group.size)[: max(1, group.size // 2)]
        yield pk.ChannelPlan.from_keep(graph, {group.id: kept})
    narrow = {group.id: min(group.size, group.min_width) for group in prunable}
    yield pk.ChannelPlan.from_widths(graph, narrow)


def assert_slim_is_masked(model, graph, inputs):
    inputs = [i if isinstance(i, (tuple, dict)) else (i,) for i in inputs]
    inputs += [noise(inputs[0], seed) for seed in (3, 4)]
    exact = copy.deepcopy(model).double()
    if runs(exact, double(inputs[0])):
        model, inputs = exact, [double(given) for given in inputs]
    tolerance = (
        1e-2 if next(iter(model.parameters())).dtype in (torch.half, torch.bfloat16) else 1e-5
    )
    trains = [given for given in inputs if runs(copy.deepcopy(model).train(), given)]
    for plan in plans(graph):
        small, masked = pk.slim(model, plan), pk.mask_(copy.deepcopy(model), plan)
        modules = dict(small.named_modules())
        for layer in graph.layers:
            kind = "features" if isinstance(modules[layer.name], nn.Linear) else "channels"
            for side in ("in", "out"):
                physical = getattr(modules[layer.name], f"{side}_{kind}")
                assert physical == layer.width(side, plan.widths)
        for given in inputs:
            expected, found = run(copy.deepcopy(masked), given), run(copy.deepcopy(small), given)
            assert [t.shape for t in expected] == [t.shape for t in found]
            for left, right in zip(expected, found, strict=True):
                left, right = left.double().nan_to_num(), right.double().nan_to_num()
                if left.numel():
                    scale = left.abs().max().clamp_min(1e-9)
                    assert float((left - right).abs().max() / scale) < tolerance
        for given in trains[:1]:
            run(copy.deepcopy(small).train(), given)


def check(case):
    torch.manual_seed(0)
    model = case.make()
    with torch.no_grad():
        model = randomise(model)
    graph = pk.trace(model, case.example)
    found = {group.id for group in graph.groups if group.prunable}
    assert case.prunable is None or found == case.prunable
    for group, reason in case.frozen.items():
        assert not graph.group(group).prunable
        assert reason in graph.group(group).reason
    assert all(bool(group.reason) != group.prunable for group in graph.groups)
    assert case.note in " ".join(graph.notes)
    assert_slim_is_masked(model, graph, [case.example, *case.others])


# --- which way it goes --------------------------------------------------------------------------


def either(condition):
    """One of two layers, as the condition says."""
    return lambda s, x: s.p(x) if condition(s, x) else s.q(x)


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


# --- written in place ---------------------------------------------------------------------------


def steps(*doing):
    """Statements, with ``y`` as what another layer gives."""

    def how(s, x):
        space = {"x": x, "torch": torch, "F": F, "s": s}
        for statement in doing:
            exec(statement, space)
        return space["x"]

    return how


WRITTEN = "writes it into part of another tensor"
CONSTANT = "combines it with values that stay as they are"
IN_PLACE = {
    "relu_": net(steps("x = s.p(x).relu_()"), "a b p", p=same),
    "add": net(steps("x += s.p(x)"), "a b", p=same),
    "a slice is zeroed": net(steps("x[:, :4] = 0"), "b", "zeroing"),
    "a channel is scaled": net(steps("x[:, 3] *= 2"), "b", "by number"),
    "a channel is copied": net(steps("x[:, 3] = x[:, 2]"), "b", "by number"),
    "some values are set": net(steps("x[x > 1] = 0.5"), "a b"),
    "rows are set": net(steps("x[0] = x[1]"), "b", WRITTEN),
    "out": net(steps("x = torch.add(x, s.p(x), out=torch.empty_like(x))"), "a b", p=same),
    "out that is empty": net(
        steps("x = torch.add(x, s.p(x), out=torch.empty(0))"), "b", CONSTANT, p=same
    ),
    "out that is a view": net(
        steps(
            "y = x.new_zeros(x.shape[0], x.shape[1] + 2, 8, 8)",
            "torch.mul(x, 2, out=y[:, : x.shape[1]])",
            "x = y[:, : x.shape[1]]",
        ),
        "b",
        CONSTANT,
    ),
    "copied": net(steps("y = torch.empty_like(x)", "y.copy_(s.p(x))", "x = y"), "a b", p=same),
    "copied into new": net(steps("y = x.new_empty(x.shape)", "y.copy_(x)", "x = y"), "a b"),
    "copied after a view": net(
        steps("y = x.new_empty(x.shape)", "v = y.view(y.shape)", "y.copy_(x)", "x = v"),
        "b",
        "the slim network fails",
    ),
    "copied through a view": net(
        steps("y = x.new_empty(x.shape)", "v = y.view(y.shape)", "v.copy_(x)", "x = y"),
        "b",
        WRITTEN,
    ),
    "a slice's view before it is written": net(
        steps("y = x.new_empty(x.shape)", "v = y[:, :4]", "y.copy_(x)", "x = v"),
        "b",
        wide=4,
    ),
    "written through a view": net(steps("v = x.view(x.shape[0], -1)", "v += 1"), "a b"),
    "filled slice by slice": net(
        steps(
            "y = torch.zeros(x.shape[0], 16, 8, 8)",
            "y[:, :8] = s.p(x)",
            "y[:, 8:] = s.q(x)",
            "x = y",
        ),
        "a b",
        {"p": WRITTEN, "q": WRITTEN},
        wide=16,
        p=same,
        q=same,
    ),
    "added slice by slice": net(
        steps(
            "y = x.new_zeros(x.shape[0], 16, 8, 8)",
            "y[:, :8].add_(s.p(x))",
            "y[:, 8:].add_(s.q(x))",
            "x = y",
        ),
        "a b",
        {"p": CONSTANT, "q": CONSTANT},
        wide=16,
        p=same,
        q=same,
    ),
    "filled sample by sample": net(
        steps("y = x.new_zeros(x.shape)", "for i in range(len(x)): y[i] = s.p(x[i:i+1])[0]", "x=y"),
        "b",
        {"p": WRITTEN},
        others=[image(3)],
        p=same,
    ),
    "modified after use": net(steps("y = s.p(x)", "x.mul_(2)", "x = x + y"), "a b", p=same),
    "zeroed after use": net(
        steps("y = s.p(x.view(x.shape))", "x.view(x.shape).zero_()", "x = x + y"), "a b", p=same
    ),
    "saved, then in place": net(
        steps("y = s.p(x)", "x = y + F.relu(y, inplace=True)"), "a b p", p=same
    ),
    "data replaced": net(steps("y = s.p(x)", "x.data = y"), "b", "the slim network fails", p=same),
    "set_": net(steps("x.set_(s.p(x))"), "b", "aten.set_ in the model", p=same),
    "resize_": net(steps("y = torch.empty(0)", "y.resize_(x.shape)", "y.copy_(x)", "x = y"), "a b"),
    "transpose_": net(steps("x.transpose_(2, 3)"), "a b"),
    "index_fill_": net(steps("x.index_fill_(1, torch.tensor([1, 2]), 0.0)"), "b", "index_fill_"),
    "scatter_": net(
        steps(
            "y = torch.arange(8).flip(0).view(1, 8, 1, 1)",
            "x = x.scatter_(1, y.expand_as(x), x.clone())",
        ),
        "b",
        "picks positions of it (scatter_)",
    ),
    "squeeze": net(
        steps("x = s.p(F.adaptive_avg_pool2d(x, 1).squeeze())[:, :, None, None]"),
        "a b p",
        others=[image(3)],
        p=lambda: nn.Linear(8, 8),
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_written_in_place(name):
    check(IN_PLACE[name])


def test_where_one_channel_is_not_enough_two_are_kept():
    groups = pk.trace(IN_PLACE["squeeze"].make(), IMAGE).by_id
    assert {name: group.min_width for name, group in groups.items()} == {
        "a": 2,
        "b": 1,
        "fc": 1,
        "p": 1,
    }


# --- called more than once, shared, tied --------------------------------------------------------


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


# --- parameters and numbers outside of modules --------------------------------------------------


class Buffer(Net):
    def __init__(self, how, tensor):
        super().__init__(how)
        self.register_buffer("t", tensor)


class Attribute(Net):
    def __init__(self, how, tensor):
        super().__init__(how)
        self.t = [tensor]


class Normed(Net):
    def __init__(self):
        super().__init__(lambda s, x: F.batch_norm(x, s.mean, s.var, s.gain))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 1)
        self.gain = nn.Parameter(torch.randn(8))


FAILS = "the slim network fails"
BY_NUMBER = "picks channels by number"
PARAMETERS = {
    "bias": net(lambda s, x: x + s.w, "a b", w=parameter(8, 1, 1)),
    "scale": net(lambda s, x: x * s.w.view(1, -1, 1, 1), "a b", w=parameter(8)),
    "scale, literal": net(lambda s, x: x * s.w.view(1, 8, 1, 1), "b", FAILS, w=parameter(8)),
    "convolution": net(lambda s, x: F.conv2d(x, s.w), "a b", w=parameter(8, 8, 1, 1)),
    "depthwise convolution": net(
        lambda s, x: F.conv2d(x, s.w, groups=8), "b", "is no convolution", w=parameter(8, 1, 1, 1)
    ),
    "norm": Case(Normed, IMAGE, {"a", "b"}),
    "einsum": net(lambda s, x: torch.einsum("bchw,dc->bdhw", x, s.w), "a b", w=parameter(8, 8)),
    "einsum of three": net(
        lambda s, x: torch.einsum("bchw,cr,rd->bdhw", x, s.w, s.v),
        "a b",
        w=parameter(8, 5),
        v=parameter(5, 8),
    ),
    "product": line(lambda s, x: x @ s.w, "a b", w=parameter(12, 12)),
    "product from the left": net(
        lambda s, x: (s.w @ x.flatten(2)).view(len(x), -1, 8, 8), "a b", w=parameter(8, 8)
    ),
    "indexed": line(lambda s, x: x * s.w[0], "a b", w=parameter(3, 12)),
    "indexed by a tensor": line(
        lambda s, x: x * s.w[torch.tensor([1, 0])].sum(0), "a b", w=parameter(3, 12)
    ),
    "turned round": line(
        lambda s, x: x * s.w[torch.arange(11, -1, -1)], "b", CONSTANT, w=parameter(12)
    ),
    "reshaped": line(lambda s, x: x * s.w.reshape(-1), "b", CONSTANT, w=parameter(3, 4)),
    "diagonal": net(
        lambda s, x: x * torch.diagonal(s.w).view(1, -1, 1, 1), "a b", w=parameter(8, 8)
    ),
    "outer product": net(
        lambda s, x: x * torch.einsum("c,d->cd", s.w, s.w).sum(1).view(-1, 1, 1),
        "a b",
        w=parameter(8),
    ),
    "inverse": net(
        lambda s, x: F.conv2d(x, torch.linalg.inv(s.w)[:, :, None, None]),
        "b",
        "computes the weight that reads it",
        w=parameter(8, 8),
    ),
    "weight of a network": net(
        lambda s, x: F.conv2d(x, s.p(s.w).view(8, 8, 1, 1)),
        "b",
        "computes the weight that reads it",
        p=lambda: nn.Linear(4, 64),
        w=parameter(4),
    ),
    "weight of experts": net(
        lambda s, x: F.conv2d(
            x, torch.einsum("e,eoikl->oikl", s.p(x.mean((0, 2, 3))).softmax(0), s.w)
        ),
        "b",
        {"p": "compares channels"},
        w=parameter(3, 8, 8, 1, 1),
        p=lambda: nn.Linear(8, 3),
    ),
    "list of parameters": net(
        lambda s, x: x * s.w[0],
        "a b",
        w=lambda: nn.ParameterList([torch.rand(8, 1, 1)]),
    ),
    "dict of parameters": net(
        lambda s, x: x * s.w["k"], "a b", w=lambda: nn.ParameterDict({"k": torch.rand(8, 1, 1)})
    ),
    "buffer": Case(lambda: Buffer(lambda s, x: x * s.t, torch.rand(1, 8, 1, 1)), IMAGE, {"a", "b"}),
    "mask": Case(
        lambda: Buffer(lambda s, x: x.masked_fill(s.t, 0.5), torch.rand(1, 8, 1, 1) > 0.5),
        IMAGE,
        {"a", "b"},
    ),
    "buffer as an index": Case(
        lambda: Buffer(lambda s, x: x[:, s.t], torch.randperm(8)), IMAGE, {"b"}, {"a": BY_NUMBER}
    ),
    "buffer that selects": Case(
        lambda: Buffer(lambda s, x: x.index_select(1, s.t), torch.randperm(8)),
        IMAGE,
        {"b"},
        {"a": BY_NUMBER},
    ),
    "tensor in a list": Case(
        lambda: Attribute(lambda s, x: x * s.t[0], torch.rand(1, 8, 1, 1)),
        IMAGE,
        {"b"},
        {"a": CONSTANT},
    ),
    "constant": net(lambda s, x: x * torch.ones(1, 8, 1, 1), "b", CONSTANT),
    "constant as wide as it comes": net(
        lambda s, x: x * torch.arange(x.shape[1]).view(-1, 1, 1), "b", CONSTANT
    ),
    "view": net(lambda s, x: x.view(-1, 8, 64).view_as(x), "b", FAILS),
    "split": net(lambda s, x: torch.cat(x.split([4, 4], 1), 1), "b", FAILS),
    "uneven split": net(lambda s, x: torch.cat(x.split([3, 5], 1)[::-1], 1), "b", "unevenly"),
    "expand": net(lambda s, x: x + x.mean((2, 3), keepdim=True).expand(-1, 8, -1, -1), "b", FAILS),
    "expand as": net(lambda s, x: x + x.mean((2, 3), keepdim=True).expand_as(x), "a b"),
    "unflatten": net(
        lambda s, x: s.p(x).flatten(1, 2), "b", FAILS, p=lambda: nn.Unflatten(1, (2, 4))
    ),
    "second half": net(lambda s, x: x[:, 4:], "b", FAILS, wide=4),
    "second half of what comes": net(lambda s, x: x[:, x.shape[1] // 2 :], "a b", wide=4),
    "slice": net(lambda s, x: x[:, 2:], "b", "takes a slice of it", wide=6),
    "every second": net(lambda s, x: x[:, ::2], "b", "takes a slice of it", wide=4),
    "some": net(lambda s, x: x[:, [3, 1, 2]], "b", BY_NUMBER, wide=3),
    "root of the width": net(lambda s, x: x * x.shape[1] ** -0.5, "b", "zeroing"),
    "new layer in forward": net(lambda s, x: nn.Conv2d(8, 8, 1)(x), "b", "computes the weight"),
    "new norm in forward": net(lambda s, x: nn.BatchNorm2d(8).eval()(x), "b", FAILS),
    "strides": net(lambda s, x: x.as_strided((len(x), 8, 8, 8), (512, 64, 8, 1)), "b", FAILS),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_numbers_outside_of_modules(name):
    check(PARAMETERS[name])


# --- across channels, and across positions ------------------------------------------------------

KNOWN = "does to channels is not known"
OPERATORS = {
    "flip": net(lambda s, x: x.flip(1), "b", "moves channels by number"),
    "flip of rows": net(lambda s, x: x.flip(2), "a b"),
    "roll": net(lambda s, x: x.roll(1, 1), "b", "moves channels by number"),
    "roll of rows": net(lambda s, x: x.roll(1, 2), "a b"),
    "sort": net(lambda s, x: x.sort(1)[0], "b", "compares channels (sort)"),
    "topk": net(lambda s, x: x.topk(4, 1)[0], "b", "compares channels (topk)", wide=4),
    "argmax": net(lambda s, x: x.argmax(1, keepdim=True).to(x.dtype), "b", "argmax", wide=1),
    "gather": net(lambda s, x: x.gather(1, x.argmax(1, keepdim=True)), "b", "argmax", wide=1),
    "softmax": net(lambda s, x: x.softmax(1), "b", "compares channels (softmax)"),
    "softmax of positions": net(lambda s, x: x.flatten(2).softmax(-1).view_as(x), "a b"),
    "log softmax": net(lambda s, x: x.log_softmax(1), "b", "compares channels (log_softmax)"),
    "mean": net(lambda s, x: x - x.mean(1, keepdim=True), "b", "takes a mean over channels"),
    "sum": net(lambda s, x: x.sum(1, keepdim=True), "a b", wide=1),
    "var": net(lambda s, x: x / (x.var(1, keepdim=True) + 1), "b", "takes a var over channels"),
    "std": net(lambda s, x: x / (x.std(1, keepdim=True) + 1), "b", "takes a std over channels"),
    "norm": net(lambda s, x: x / (x.norm(dim=1, keepdim=True) + 1), "a b"),
    "smallest norm": net(
        lambda s, x: x / (torch.linalg.vector_norm(x, -np.inf, 1, keepdim=True) + 1), "b"
    ),
    "normalised": net(lambda s, x: F.normalize(x, dim=1), "a b"),
    "cumsum": net(lambda s, x: x.cumsum(1), "b", "takes a cumsum over channels"),
    "cumsum of rows": net(lambda s, x: x.cumsum(2), "a b"),
    "largest": net(lambda s, x: x.amax(1, keepdim=True), "b", "amax over channels", wide=1),
    "larger": net(lambda s, x: torch.maximum(x, s.p(x)), "a b", p=same),
    "maxout": net(lambda s, x: x.view(len(x), -1, 2, 8, 8).amax(2), "b", "amax", wide=4),
    "glu": net(lambda s, x: F.glu(x, 1), "b", "compares channels (glu)", wide=4),
    "counted": net(lambda s, x: x * x.count_nonzero(1)[:, None], "b", "aten.count_nonzero"),
    "quantile": net(lambda s, x: x * x.quantile(0.5, dim=1, keepdim=True), "b", "over channels"),
    "histogram": net(lambda s, x: x * torch.histc(x, 4)[0], "b", KNOWN),
    "local response": net(lambda s, x: F.local_response_norm(x, 3), "b", "mixes its positions"),
    "pixel shuffle": net(lambda s, x: F.pixel_shuffle(x, 2), "a b", wide=2),
    "pixel unshuffle": net(lambda s, x: F.pixel_unshuffle(x, 2), "a b", wide=32),
    "unfold and fold": net(
        lambda s, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1), "b", "aten.im2col"
    ),
    "windows": net(lambda s, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)), "b", "unfold"),
    "interpolate": net(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear"), "a b"),
    "interpolate channels": net(
        lambda s, x: F.interpolate(x[:, None], size=(8, 4, 4))[:, 0], "b", "mixes its positions"
    ),
    "grid sample": net(
        lambda s, x: F.grid_sample(x, s.p(x).permute(0, 2, 3, 1).tanh(), align_corners=False),
        "a b",
        {"p": "reads it (grid_sampler_2d)"},
        p=lambda: conv(8, 2),
    ),
    "unpooled": net(
        lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), "b", KNOWN
    ),
    "Fourier of channels": net(lambda s, x: torch.fft.fft(x, dim=1).real, "b", "aten._fft_r2c"),
    "Fourier of positions": net(
        lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x), s=(8, 8)), "b", "aten._fft_r2c"
    ),
    "Fourier filter": net(
        lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(s.w), s=(8, 8)),
        "b",
        "aten._fft_r2c",
        w=parameter(8, 8, 5, 2),
    ),
    "complex number": net(lambda s, x: (x * (1 + 1j)).abs(), "a b"),
    "complex of two": net(
        lambda s, x: torch.view_as_real(torch.complex(x, s.p(x))).sum(-1),
        "b",
        "aten.complex",
        p=same,
    ),
    "quantized for a moment": net(
        lambda s, x: torch.fake_quantize_per_tensor_affine(x, 0.01, 0, -128, 127), "b", KNOWN
    ),
    "autocast": net(lambda s, x: half(s.p, x), "a b p", p=same),
    "cosine": net(lambda s, x: x * F.cosine_similarity(x, s.p(x), dim=1)[:, None], "a b", p=same),
    "distances": net(
        lambda s, x: x * torch.cdist(x.flatten(2), x.flatten(2)).mean(), "b", "aten._cdist_forward"
    ),
    "attention of channels": net(
        lambda s, x: ((x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2)).view_as(x),
        "b",
        "compares channels (softmax)",
    ),
    "attention of positions": net(
        lambda s, x: (x.flatten(2) @ (x.flatten(2).mT @ x.flatten(2)).softmax(-1)).view_as(x),
        "a b",
    ),
    "singular values": net(lambda s, x: x * torch.linalg.svdvals(x.flatten(2)).sum(), "b", KNOWN),
    "upper triangle": net(lambda s, x: x.triu(), "b", "aten.triu"),
    "scattered": net(
        lambda s, x: torch.zeros_like(x).scatter(1, x.argsort(1), x), "b", "compares channels"
    ),
    "added by index": net(
        lambda s, x: torch.zeros_like(x).index_add(1, torch.arange(8).flip(0), x), "b", KNOWN
    ),
    "repeated": net(lambda s, x: x.repeat(1, 2, 1, 1), "b", "repeats it", wide=16),
    "each repeated": net(lambda s, x: x.repeat_interleave(2, 1), "a b", wide=16),
    "padded": net(lambda s, x: F.pad(x, (0, 0, 0, 0, 2, 2)), "b", "mixes its positions", wide=12),
    "beside itself": net(lambda s, x: torch.cat([x, x], 1), "a b", wide=16),
    "beside nothing": net(lambda s, x: torch.cat([torch.zeros(0, dtype=x.dtype), x], 1), "a b"),
    "beside an empty slice": net(lambda s, x: torch.cat([x, x[:, :0]], 1), "b", "slice of it"),
    "beside positions": net(
        lambda s, x: torch.cat([x, torch.ones(len(x), 1, *x.shape[2:]).to(x)], 1), "a b", wide=9
    ),
    "stacked the other way": net(lambda s, x: torch.stack(x.unbind(1)[::-1], 1), "b"),
    "sample by sample": net(
        lambda s, x: torch.stack([s.p(v[None])[0] for v in x.unbind(0)]),
        "a b p",
        others=[image(3)],
        p=same,
    ),
    "uneven chunks": net(lambda s, x: torch.cat(x.chunk(3, 1)[::-1], 1), "b", "unevenly"),
    "even and odd": net(lambda s, x: torch.cat([x[:, ::2], x[:, 1::2]], 1), "b", "slice of it"),
    "halves of a cat": net(
        lambda s, x: sum(s.p(torch.cat([x, 2 * x], 1)).chunk(2, 1)),
        "a b",
        p=lambda: nn.BatchNorm2d(16),
    ),
    "samples into channels": net(lambda s, x: x.reshape(1, -1, 8, 8).view(x.shape), "a b"),
    "channels into samples": net(
        lambda s, x: s.p(x.reshape(-1, 1, 8, 8)).view(x.shape),
        "a b",
        p=lambda: conv(1, 1),
    ),
    "channels as depth": net(
        lambda s, x: s.p(x[:, None])[:, 0],
        "b",
        "p (Conv3d) mixes positions of it",
        p=lambda: nn.Conv3d(1, 1, 3, padding=1),
    ),
    "samples meet": net(lambda s, x: x + x.flip(0) - x.mean(0, keepdim=True), "a b"),
    "statistics of the batch": net(lambda s, x: F.batch_norm(x, None, None, training=True), "a b"),
    "gradient": net(lambda s, x: x + gradient(s.p, x), "b", "aten.convolution_backward", p=same),
}


def half(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    return y.to(x.dtype)


def gradient(layer, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).tanh().sum(), x)[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_across_channels_and_across_positions(name):
    check(OPERATORS[name])


# --- modules of the library, precision, state ---------------------------------------------------


def over_time(s, x):
    h, out = x.new_zeros(len(x), s.p.hidden_size), []
    for step in x.unbind(1):
        h = s.p(step, h)
        out.append(h)
    return torch.stack(out, 1)


def own_cell(s, x):
    h, out = torch.zeros_like(x[:, 0]), []
    for step in x.unbind(1):
        h = torch.tanh(s.p(step) + s.q(h))
        out.append(h)
    return torch.stack(out, 1)


def packed(s, x):
    x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(s.p(x)[0], batch_first=True)[0]


class State(Net):
    """Remembers something of what it saw."""

    def __init__(self, form):
        super().__init__(getattr(self, form))
        self.register_buffer("seen", torch.zeros(8))
        self.last, self.calls, self.p = None, 0, same()

    @staticmethod
    def in_place(s, x):
        s.seen.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def assigned(s, x):
        s.seen = 0.9 * s.seen + 0.1 * x.mean((0, 2, 3))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def copied(s, x):
        s.seen.copy_(0.9 * s.seen + 0.1 * x.mean((0, 2, 3)))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def ever_new(s, x):
        for _ in range(5):
            s.seen = s.seen * 1.0
            s.p(x)
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def memory(s, x):
        y = x if s.last is None else x + s.p(s.last)
        s.last = x
        return y

    @staticmethod
    def counted(s, x):
        s.calls += 1
        return s.p(x) if s.calls > 2 else x


def state(form, prunable, frozen=None):
    return Case(lambda: State(form), IMAGE, set(prunable.split()), frozen or {}, [IMAGE, IMAGE])


class Graph(nn.Module):
    """Rows of a sparse matrix say which nodes are neighbours."""

    def __init__(self, sparse_output=False):
        super().__init__()
        self.a, self.b, self.sparse = nn.Linear(6, 8), nn.Linear(8, 3), sparse_output
        self.register_buffer("edges", torch.eye(5).to_sparse())

    def forward(self, x):
        x = F.relu(torch.sparse.mm(self.edges, self.a(x)))
        x = self.b(torch.sparse.mm(self.edges, x))
        return x.to_sparse() if self.sparse else x


def attention(*arguments, **more):
    return lambda: nn.MultiheadAttention(12, 3, *arguments, batch_first=True, **more)


def inference(s, x):
    with torch.inference_mode():
        y = s.p(x)
        y += 1
        y[:, :].mul_(2)
    return x + y


def of_dtype(dtype):
    return Case(
        lambda: Net(lambda s, x: s.p(x), p=same()).to(dtype),
        IMAGE.to(dtype),
        {"a", "b", "p"},
        others=[image(3).to(dtype)],
    )


def strange(layer, weight):
    layer.weight = nn.Parameter(weight)
    return layer


LIBRARY = {
    "RNN": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.RNN(12, 12, batch_first=True)),
    "LSTM": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.LSTM(12, 12, batch_first=True)),
    "GRU": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.GRU(12, 12, batch_first=True)),
    "GRU both ways": line(
        lambda s, x: s.p(x)[0],
        "b",
        wide=24,
        p=lambda: nn.GRU(12, 12, batch_first=True, bidirectional=True),
    ),
    "packed LSTM": line(
        packed,
        "b",
        "_pack_padded_sequence",
        others=(),
        p=lambda: nn.LSTM(12, 12, batch_first=True),
    ),
    "GRU cell": line(over_time, None, p=lambda: nn.GRUCell(12, 12)),
    "own cell": line(own_cell, "a b", p=wide, q=wide),
    "bilinear": line(lambda s, x: s.p(x, x), "b", p=lambda: nn.Bilinear(12, 12, 12)),
    "attention": line(lambda s, x: x + s.p(x, x, x)[0], None, p=attention()),
    "attention with biases": line(
        lambda s, x: x + s.p(x, x, x)[0], None, p=attention(add_bias_kv=True, add_zero_attn=True)
    ),
    "encoder": line(
        lambda s, x: s.p(x),
        None,
        p=lambda: nn.TransformerEncoderLayer(12, 3, 24, batch_first=True),
    ),
    "decoder": line(
        lambda s, x: s.p(x, x),
        None,
        p=lambda: nn.TransformerDecoderLayer(12, 3, 24, batch_first=True),
    ),
    "RMS norm": line(lambda s, x: s.p(x), "b", p=lambda: nn.RMSNorm(12)),
    "one group of channels": net(lambda s, x: s.p(x), "b", p=lambda: nn.GroupNorm(1, 8)),
    "norm of everything": net(
        lambda s, x: s.p(x), "b", "over several axes", p=lambda: nn.LayerNorm([8, 8, 8])
    ),
    "norm of positions": net(lambda s, x: s.p(x), "a b", p=lambda: nn.LayerNorm([8, 8])),
    "circular": net(
        lambda s, x: s.p(x), None, p=lambda: nn.Conv2d(8, 8, 3, 1, 1, 1, 1, True, "circular")
    ),
    "grouped transposed": net(
        lambda s, x: s.p(x),
        "b",
        "grouped transposed convolution",
        p=lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=2),
    ),
    "bag of embeddings": line(
        lambda s, x: x + s.p(torch.tensor([[1, 2]])),
        "b",
        CONSTANT,
        p=lambda: nn.EmbeddingBag(5, 12),
    ),
    "lazy layer that has run": line(lambda s, x: s.p(x), "a b p", p=lambda: ran(nn.LazyLinear(12))),
    "bfloat16": of_dtype(torch.bfloat16),
    "half": of_dtype(torch.half),
    "float64": of_dtype(torch.double),
    "sparse": Case(Graph, TOKENS[0], set(), {"a": "aten._sparse_addmm"}),
    "sparse output": Case(lambda: Graph(True), TOKENS[0], set(), {"b": "aten._to_sparse"}),
    "state in place": state("in_place", "a b"),
    "state assigned": state("assigned", "a b"),
    "state copied": state("copied", "a b"),
    "state ever new": state("ever_new", "a b p"),
    "memory of the last input": state("memory", "b"),
    "counts its calls": state("counted", "a b"),
    "weights not contiguous": net(
        lambda s, x: s.p(x),
        "a b p",
        p=lambda: strange(same(), torch.randn(3, 3, 8, 8).permute(2, 3, 0, 1)),
    ),
    "channels last": net(
        lambda s, x: s.p(x), "a b p", p=lambda: same().to(memory_format=torch.channels_last)
    ),
    "no_grad": net(lambda s, x: x + torch.no_grad()(s.p)(x), "a b", p=same),
    "inference mode": net(inference, "a b", p=same),
    "vmap": net(lambda s, x: torch.vmap(lambda v: s.p(v[None])[0])(x), "a b p", p=same),
    "called as a function": net(
        lambda s, x: torch.func.functional_call(s.p, {"weight": s.p.weight * 2}, (x,)),
        "a b p",
        p=same,
    ),
    "checkpoint": net(lambda s, x: checkpoint(s.p, x, use_reentrant=False), "a b p", p=same),
    "number of a mean": net(lambda s, x: x * x.mean().item(), "b", "takes a mean over channels"),
    "list of means": net(
        lambda s, x: x * torch.tensor(x.mean((0, 2, 3)).tolist()).view(-1, 1, 1), "b", CONSTANT
    ),
    "through NumPy": net(
        lambda s, x: torch.from_numpy(x.numpy()[:, ::-1].copy()), "b", "the slim network fails"
    ),
    "without layers": Case(nn.ReLU, IMAGE, set()),
    "only its output": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), IMAGE, set(), {"1": OUTPUT}
    ),
}


def ran(layer):
    layer(TOKENS.repeat(1, 1, 2))
    return layer


@pytest.mark.parametrize("name", [n for n in LIBRARY if n != "without layers"])
def test_modules_of_the_library_precision_and_state(name):
    check(LIBRARY[name])


def test_a_model_without_parameters():
    assert pk.trace(nn.ReLU(), IMAGE).groups == ()


# --- functions that PyTorch does not know, wrappers, inputs and outputs --------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return x * w.view(1, -1, 1, 1) * 2

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


@torch.library.custom_op("prunekit_hostile::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("prunekit_hostile::twice_", mutates_args={"x"})
def twice_(x: torch.Tensor) -> None:
    x.mul_(2)


def doubled_in_place(s, x):
    twice_(x)
    return x


def hooked(**hooks):
    net = Plain()
    for name, hook in hooks.items():
        net.get_submodule(name).register_forward_hook(lambda _, __, out, hook=hook: hook(out))
    return net


class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.f = nn.Linear(6, 6)
        self.inner = Deep(depth - 1) if depth else nn.Identity()

    def forward(self, x):
        return self.inner(F.relu(self.f(x)))


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.ModuleList(nn.Linear(3, 8) for _ in range(60)), nn.Linear(8, 4)

    def forward(self, *inputs):
        return self.b(sum(F.relu(a(x)) for a, x in zip(self.a, inputs, strict=True)))


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, *, x, scale=1.0, more=None):
        x = x if more is None else x + more["y"][0]
        return self.b(F.relu(self.a(x)) * scale)


Pair = namedtuple("Pair", "left right")


@dataclass
class Record:
    left: torch.Tensor
    right: object = None


@dataclass(slots=True)
class Slotted:
    left: torch.Tensor
    right: object = None


class Gives(Net):
    """Returns something of its logits z, features x and y."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        x = F.relu(self.a(x))
        y = F.relu(self.b(x))
        return self.give(self.fc(y.mean((2, 3))), x, y)


def gives(give, prunable="a b", frozen=None):
    return Case(lambda: Gives(give), IMAGE, set(prunable.split()), frozen or {})


LESS = torch.tensor([True, False, False, False])
AROUND = {
    "function of its own": net(lambda s, x: Doubled.apply(x, s.w), "a b", w=parameter(8)),
    "operator of its own": net(lambda s, x: twice(x), "b", "what prunekit_hostile.twice in the"),
    "own operator in place": net(doubled_in_place, "b", "prunekit_hostile.twice_ in the model"),
    "compiled": Case(lambda: torch.compile(Plain()), IMAGE, {"_orig_mod.c1", "_orig_mod.c2"}),
    "data parallel": Case(lambda: nn.DataParallel(Plain()), IMAGE, {"module.c1", "module.c2"}),
    "hook": Case(lambda: hooked(c1=lambda out: out * 2 + 1), IMAGE, {"c1", "c2"}),
    "hook with a literal": Case(
        lambda: hooked(c1=lambda out: out * torch.arange(8).view(1, 8, 1, 1)),
        IMAGE,
        {"c2"},
        {"c1": "mul in c1 (Conv2d) combines it with values that stay as they are"},
    ),
    "twenty deep": Case(lambda: Deep(20), TOKENS),
    "sixty inputs": Case(Many, tuple(torch.randn(2, 3) for _ in range(60)), {"a.0"}),
    "keywords": Case(Keywords, {"x": TOKENS, "scale": 2.0}, {"a"}),
    "nested input": Case(Keywords, {"x": TOKENS, "more": {"y": [torch.ones(1)]}}, {"a"}),
    "gives a dict": gives(lambda z, x, y: {"z": z, "n": None, "i": 3}),
    "gives a dataclass": gives(lambda z, x, y: Record(z, x), "b", {"a": OUTPUT}),
    "gives a dataclass with slots": gives(lambda z, x, y: Slotted(z)),
    "gives a list in a list": gives(lambda z, x, y: [z, [None, (z,)]]),
    "gives a named tuple": gives(lambda z, x, y: Pair(z, y), "a", {"b": OUTPUT}),
    "gives a text": gives(lambda z, x, y: (z, "text", 1.0)),
    "gives some features": gives(lambda z, x, y: (z, x[:, :4]), "b", {"a": OUTPUT}),
    "gives a sum of features": gives(lambda z, x, y: (z, x.sum(1)), "a b"),
    "gives a matrix of features": gives(
        lambda z, x, y: (z, x.flatten(2) @ x.flatten(2).mT), "b", {"a": OUTPUT}
    ),
    "gives statistics": gives(lambda z, x, y: (z, x.var()), "b", {"a": "var over channels"}),
    "gives how many": gives(lambda z, x, y: (z, (x > 0).sum()), "a b"),
    "gives its width": gives(lambda z, x, y: (z, x.shape[1]), "b", {"a": "zeroing"}),
    "gives its width as a tensor": gives(
        lambda z, x, y: (z, torch.tensor(x.shape[1])), "b", {"a": "zeroing"}
    ),
    "gives numbers": gives(lambda z, x, y: z.tolist(), "a b", {"fc": "outputs"}),
    "gives truth values": gives(lambda z, x, y: z > 0),
    "gives complex numbers": gives(lambda z, x, y: torch.complex(z, z * z)),
    "gives infinity": gives(lambda z, x, y: z.masked_fill(LESS, -torch.inf)),
    "gives no number": gives(lambda z, x, y: z * torch.nan, "", {"a": "nan"}),
    "gives an empty slice": gives(lambda z, x, y: (z, x[:, :0]), "b"),
}


@pytest.mark.parametrize("name", AROUND)
def test_own_functions_wrappers_inputs_and_outputs(name):
    check(AROUND[name])


# --- refused ------------------------------------------------------------------------------------


class Pads(Line):
    """Sequences of different lengths."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, x):
        x = torch.nested.nested_tensor([x[0, :3], x[1]], layout=self.layout)
        return super().forward(x).to_padded_tensor(0.0)


def quietly(make, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


REFUSED = {
    "torch.cond": (
        lambda: Net(lambda s, x: torch.cond(x.sum() > 0, s.p, s.q, (x,)), p=same(), q=same()),
        IMAGE,
        "the model uses torch's cond, which cannot be followed; write it with plain Python",
    ),
    "script": (
        lambda: quietly(torch.jit.script, Plain()),
        IMAGE,
        "the model is a compiled RecursiveScriptModule",
    ),
    "script inside": (
        lambda: Net(lambda s, x: s.p(x), p=quietly(torch.jit.script, same())),
        IMAGE,
        "p is a compiled RecursiveScriptModule.*use the nn.Module that it was made from",
    ),
    "traced": (
        lambda: quietly(torch.jit.trace, Plain(), IMAGE),
        IMAGE,
        "the model is a compiled",
    ),
    "jagged": (lambda: Pads(torch.jagged), TOKENS, "nested tensors, which cannot be followed"),
    "nested": (lambda: Pads(torch.strided), TOKENS, "nested tensors, which cannot be followed"),
    "lazy": (lambda: Net(p=nn.LazyConv2d(4, 1)), IMAGE, "Net has lazy layers without a size; run"),
    "meta": (lambda: Plain().to("meta"), IMAGE, "Plain cannot be copied: .*meta tensor"),
    "old weight norm": (
        lambda: quietly(nn.utils.weight_norm, same()),
        torch.randn(1, 8, 8, 8),
        "cannot be copied: RuntimeError",
    ),
    "list": (Plain, [IMAGE], "Plain refuses input"),
    "no samples": (Plain, IMAGE[:0], "the example is empty; give one with a sample"),
    "gives nothing": (lambda: Gives(lambda z, x, y: None), IMAGE, "the model returns no tensor"),
    "gives a set": (lambda: Gives(lambda z, x, y: {1}), IMAGE, "the model returns a set"),
    "gives an array": (lambda: Gives(lambda z, x, y: z.numpy()), IMAGE, "returns a ndarray"),
    "gives a generator": (lambda: Gives(lambda z, x, y: (t for t in [z])), IMAGE, "a generator"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_in_one_line(name):
    make, example, message = REFUSED[name]
    with pytest.raises(PrunekitError, match=message) as caught:
        pk.trace(make().eval(), example)
    assert "\n" not in str(caught.value)


def test_a_model_too_deep_to_copy_is_refused_in_one_line():
    model, limit = Deep(320), sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        with pytest.raises(PrunekitError, match="Deep cannot be copied: RecursionError") as caught:
            pk.trace(model, TOKENS)
    finally:
        sys.setrecursionlimit(limit)
    assert "\n" not in str(caught.value)


def test_a_dynamically_quantized_layer_stays():
    make = torch.ao.quantization.quantize_dynamic
    model = quietly(make, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), {"2"})
    (group,) = (g for g in pk.trace(model, TOKENS).groups if g.id == "0")
    assert "quantized.linear_dynamic in 2 (Linear)" in group.reason


def test_parameters_that_share_memory_unknown_to_pytorch_are_not_zeroed():
    model = Net(lambda s, x: s.q(s.p(x)), p=same(), q=same())
    model.q.weight = nn.Parameter(model.p.weight.data)
    plan = pk.ChannelPlan.random(pk.trace(model.eval(), IMAGE), 0.5)
    with pytest.raises(
        PrunekitError, match=r"p\.weight and q\.weight share memory without being one"
    ):
        pk.mask_(model, plan)
    pk.mask_(copy.deepcopy(model), plan)  # a copy has memory of its own for each
