"""Random small networks, put together from every operator the tracer has to understand.

A `Recipe` says all about a network and is its own repr: `build(Recipe(...))` makes the network a
failing test names. Each step is a kind and a seed of its own, so that a recipe without some of its
steps is still the same network there; `smallest` uses that to find what is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from support.nets import randomise
from support.random_nets.base import MAKERS, WIDTHS, At, Block, pick, same
from support.random_nets.maps import TRAPS
from support.random_nets.tokens import Attention

__all__ = [
    "KINDS",
    "LEAVING",
    "MAKERS",
    "OPENS",
    "PLAIN",
    "TRAPS",
    "At",
    "Attention",
    "Block",
    "RandomNet",
    "Recipe",
    "build",
    "example",
    "make",
    "random_recipe",
    "sandwich",
    "smallest",
]

KINDS = tuple(MAKERS)
LEAVING = ("pooled", "flatten", "tokens", "token_mean", "token_first", "to_map")
PLAIN = (
    *("conv", "conv_bn", "strided", "bn_alone", "prelu_one", "prelu_many", "depthwise"),
    *("residual", "concat", "max_pool", "avg_pool", "upsample", "pooled", "flatten"),
    *("dense", "dense_bn", "dense_residual", "dense_concat"),
)
"""Kinds of which a network has no reason to freeze anything but its outputs."""
OPENS = {
    **dict.fromkeys(("conv", "conv_bn", "strided", "prelu_one", "prelu_many"), 1),
    **dict.fromkeys(("residual", "concat", "flatten"), 1),
    **dict.fromkeys(("dense", "dense_bn", "dense_residual", "dense_concat"), 1),
}
"""How many groups of its own, at least, a step of a plain kind adds to a plain network."""


# -- networks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that `build` needs; two recipes with equal fields give equal networks."""

    seed: int
    size: tuple[int, ...]
    steps: tuple[tuple[str, int], ...]
    batch: int = 2
    inputs: str = "tensor"
    outputs: str = "tensor"
    tap: int = 0
    """Behind which step the second output is read, where there is one."""

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind for kind, _ in self.steps)


class RandomNet(nn.Module):
    """A stem (two with two inputs), the steps, a head, and with several outputs a second head."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        rng = np.random.default_rng(recipe.seed)
        at = At("map", pick(rng, WIDTHS), recipe.size)
        self.inputs, self.outputs, self.tap = recipe.inputs, recipe.outputs, recipe.tap
        self.stem = same(at, 3, at.channels)
        self.second = same(at, 2, at.channels, 1) if recipe.inputs != "tensor" else None
        self.steps, points = nn.ModuleList(), [at]
        self.done: list[tuple[str, int]] = []
        for kind, seed in recipe.steps:
            block = make(kind, seed, points[-1])
            if block is not None:
                self.steps.append(block)
                self.done.append((kind, seed))
                points.append(block.out)
        self.tap = min(self.tap, len(self.steps))
        self.head = _head(points[-1])
        self.side = _head(points[self.tap]) if recipe.outputs != "tensor" else None

    def forward(self, x, y=None):
        x = self.stem(x)
        x = F.relu(x if self.second is None else x + self.second(y))
        points = [x]
        for step in self.steps:
            x = step(x)
            points.append(x)
        out = self.head(x)
        if self.side is None:
            return out
        side = self.side(points[self.tap])
        return {"out": out, "side": [side]} if self.outputs == "dict" else (out, side)


def make(kind: str, seed: int, at: At) -> Block | None:
    """A step of that kind for what comes from ``at``, or None where it does not fit."""
    form, maker = MAKERS[kind]
    block = maker(np.random.default_rng(seed), at) if form == at.form else None
    if block is not None:
        block.does = f"{kind}: {at} -> {block.out}"
    return block


def _head(at: At) -> nn.Module:
    return same(at, at.channels, 5, 1) if at.form == "map" else nn.Linear(at.channels, 5)


def random_recipe(seed: int, kinds=KINDS, most: int = 8) -> Recipe:
    """Three to ``most`` steps of ``kinds``, all of which fit."""
    rng = np.random.default_rng(seed)
    dims = int(rng.choice([1, 2, 3], p=[0.15, 0.7, 0.15]))
    most_size = 4 if dims == 3 or rng.random() < 0.3 else 8
    size = tuple(int(s) for s in rng.integers(3, most_size + 1, size=dims))
    at = At("map", pick(np.random.default_rng(seed), WIDTHS), size)
    steps: list[tuple[str, int]] = []
    wanted = int(rng.integers(3, most + 1))
    for _ in range(8 * wanted):
        if len(steps) == wanted:
            break
        leave = bool(steps) and rng.random() < (0.15 if at.form == "tokens" else 0.3)
        fitting = [k for k in kinds if MAKERS[k][0] == at.form and (k in LEAVING) == leave]
        fitting += ["tokens", "tokens"] * ("tokens" in fitting)
        kind, number = (pick(rng, fitting), int(rng.integers(2**31))) if fitting else ("", 0)
        block = make(kind, number, at) if kind else None
        if block is not None and np.prod((block.out.channels, *block.out.size)) < 4096:
            steps.append((kind, number))
            at = block.out
    return Recipe(
        seed,
        size,
        tuple(steps),
        batch=int(rng.integers(1, 4)),
        inputs=str(rng.choice(["tensor", "tuple", "dict"], p=[0.7, 0.15, 0.15])),
        outputs=str(rng.choice(["tensor", "tuple", "dict"], p=[0.7, 0.15, 0.15])),
        tap=int(rng.integers(len(steps) + 1)),
    )


def sandwich(kind: str, seed: int = 0) -> Recipe | None:
    """A plain network with one step of ``kind`` in it, the last but one."""
    form = MAKERS[kind][0]
    into = {"map": [], "tokens": ["tokens", "token_linear"], "vector": ["pooled", "dense"]}[form]
    back = {"map": "conv", "tokens": "token_linear", "vector": "dense"}
    for number in range(seed, seed + 50):
        before = [("conv", number), *((name, number) for name in into)]
        found = RandomNet(Recipe(number, (4, 4), (*before, (kind, number))))
        if len(found.done) == len(before) + 1:
            after = back[found.steps[-1].out.form]
            return Recipe(number, (4, 4), (*found.done, (after, number)))
    return None


def build(recipe: Recipe) -> RandomNet:
    """The network, in evaluation mode, with random weights, norms, slopes and bare parameters."""
    net = randomise(RandomNet(recipe), recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name, buffer in module.named_buffers():
                noise = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(0.5 + noise.abs() if name == "running_var" else 0.5 + 0.3 * noise)
    return net


def example(recipe: Recipe, batch: int | None = None) -> Any:
    """Inputs as the recipe's network takes them: a tensor, a tuple or a dict."""
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    n = batch or recipe.batch
    x = torch.randn((n, 3, *recipe.size), generator=generator)
    if recipe.inputs == "tensor":
        return x
    y = torch.randn((n, 2, *recipe.size), generator=generator)
    return (x, y) if recipe.inputs == "tuple" else {"x": x, "y": y}


def smallest(recipe: Recipe, fails: Callable[[Recipe], bool]) -> Recipe:
    """A recipe that still fails with as little in it as leaving out one thing at a time finds."""
    again = True
    while again:
        again = False
        simpler = [
            replace(recipe, **{field: "tensor"})
            for field in ("inputs", "outputs")
            if getattr(recipe, field) != "tensor"
        ]
        for i in range(len(recipe.steps)):
            steps = recipe.steps[:i] + recipe.steps[i + 1 :]
            simpler.append(replace(recipe, steps=steps))
        for one in simpler:
            if fails(one):
                recipe, again = one, True
                break
    return recipe
