"""What every step of a random network is made with: sizes, blocks, and the makers by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (4, 6, 8, 12)
MOST = 32
"""Channels; concatenations stop there."""
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
ACTIVATIONS = (F.relu, F.relu, F.relu6, F.silu, F.hardswish, F.gelu, F.leaky_relu, torch.tanh)


@dataclass(frozen=True)
class At:
    """What a step receives, without the batch: a map (C, *size), tokens (*size, C), vector (C)."""

    form: str
    channels: int
    size: tuple[int, ...] = ()
    grid: tuple[int, ...] = ()
    """Of tokens: the map they were, if they still are all of it."""

    def __str__(self) -> str:
        shape = (self.channels, *self.size) if self.form == "map" else (*self.size, self.channels)
        return f"{self.form} {'x'.join(map(str, shape))}"


class Block(nn.Module):
    """Layers, and the function that runs them; it takes the block and its input."""

    def __init__(self, out: At, run: Callable[[Any, torch.Tensor], torch.Tensor], **layers: Any):
        super().__init__()
        self.out, self.run, self.does = out, run, ""
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)

    def extra_repr(self):
        bare = [f"{name}: {tuple(p.shape)}" for name, p in self.named_parameters(recurse=False)]
        return ", ".join([self.does, *bare])


Maker = Callable[[np.random.Generator, At], "Block | None"]
MAKERS: dict[str, tuple[str, Maker]] = {}
"""Kind -> the form it takes, and what makes it (None where it does not fit)."""


def makes(form: str, *kinds: str):
    """Register a maker of one kind, or of several that it is then told."""

    def register(maker):
        for kind in kinds:
            one = maker if len(kinds) == 1 else lambda rng, at, k=kind: maker(rng, at, k)
            MAKERS[kind] = form, one
        return maker

    return register


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def coin(rng):
    return bool(rng.integers(2))


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


def same(at, cin, cout, kernel=3, groups=1, bias=True, stride=1):
    """A convolution that keeps the size of maps like ``at``."""
    return CONV[len(at.size)](cin, cout, kernel, stride, kernel // 2, groups=groups, bias=bias)


def other(rng, at, step=1):
    """Another number of channels, a multiple of ``step``."""
    return int(np.ceil(pick(rng, WIDTHS) / step) * step)


def gate_shape(x):
    return (*x.shape[:2], *[1] * (x.ndim - 2))
