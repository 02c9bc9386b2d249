"""Networks that try to break tracing, as cases: handled, frozen with a reason, or refused."""

from __future__ import annotations

import copy
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.networks.running import each
from prunekit.tracing.values import comparable
from support.nets import conv, image, randomise

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


def gradient(layer, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).tanh().sum(), x)[0]


class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.f = nn.Linear(6, 6)
        self.inner = Deep(depth - 1) if depth else nn.Identity()

    def forward(self, x):
        return self.inner(F.relu(self.f(x)))


class Gives(Net):
    """Returns something of its logits z, features x and y."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        x = F.relu(self.a(x))
        y = F.relu(self.b(x))
        return self.give(self.fc(y.mean((2, 3))), x, y)


def quietly(make, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)
