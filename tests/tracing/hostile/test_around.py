"""Own functions, wrappers, inputs and outputs."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.hostile import IMAGE, OUTPUT, TOKENS, Case, Deep, Gives, check, net, parameter
from support.nets import Plain


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
