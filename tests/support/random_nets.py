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


# -- maps ------------------------------------------------------------------------------------


@makes("map", "conv")
def _conv(rng, at):
    wide, act = other(rng, at), pick(rng, ACTIVATIONS)
    layer = same(at, at.channels, wide, pick(rng, (1, 3)), bias=coin(rng))
    return Block(replace(at, channels=wide), lambda m, x: act(m.c(x)), c=layer)


@makes("map", "conv_bn")
def _conv_bn(rng, at):
    wide, act = other(rng, at), pick(rng, ACTIVATIONS)
    layer = same(at, at.channels, wide, bias=False)
    norm = NORM[len(at.size)](wide, affine=bool(rng.integers(4)))
    return Block(replace(at, channels=wide), lambda m, x: act(m.bn(m.c(x))), c=layer, bn=norm)


@makes("map", "strided")
def _strided(rng, at):
    if min(at.size) < 4:
        return None
    wide = other(rng, at)
    out = replace(at, channels=wide, size=tuple((s + 1) // 2 for s in at.size))
    layer = same(at, at.channels, wide, stride=2)
    return Block(out, lambda m, x: F.relu(m.c(x)), c=layer)


@makes("map", "frozen_bn")
def _frozen_bn(rng, at):
    if len(at.size) != 2:
        return None
    wide = other(rng, at)
    return Block(
        replace(at, channels=wide),
        lambda m, x: F.relu(m.bn(m.c(x))),
        c=same(at, at.channels, wide, bias=False),
        bn=FrozenBatchNorm2d(wide),
    )


@makes("map", "bn_alone")
def _bn_alone(rng, at):
    return Block(at, lambda m, x: F.relu(m.bn(x)), bn=NORM[len(at.size)](at.channels))


@makes("map", "group_norm")
def _group_norm(rng, at):
    groups = pick(rng, (1, 2, 4))
    wide = other(rng, at, groups)
    return Block(
        replace(at, channels=wide),
        lambda m, x: F.relu(m.norm(m.c(x))),
        c=same(at, at.channels, wide),
        norm=nn.GroupNorm(groups, wide),
    )


@makes("map", "map_layer_norm")
def _map_layer_norm(rng, at):
    norm = nn.LayerNorm(at.channels)
    return Block(at, lambda m, x: m.norm(x.movedim(1, -1)).movedim(-1, 1), norm=norm)


@makes("map", "prelu_one", "prelu_many")
def _prelu(rng, at, kind):
    wide = other(rng, at)
    return Block(
        replace(at, channels=wide),
        lambda m, x: m.act(m.c(x)),
        c=same(at, at.channels, wide, 1),
        act=nn.PReLU(1 if kind == "prelu_one" else wide),
    )


@makes("map", "transposed", "transposed_grouped")
def _transposed(rng, at, kind):
    groups = 1 if kind == "transposed" else 2
    wide = other(rng, at, groups)
    if at.channels % groups:
        return None
    up = max(at.size) <= 4
    size = tuple(2 * s for s in at.size) if up else at.size
    layer = TRANSPOSED[len(at.size)](
        at.channels, wide, 2 if up else 3, 2 if up else 1, 0 if up else 1, groups=groups
    )
    return Block(replace(at, channels=wide, size=size), lambda m, x: F.relu(m.c(x)), c=layer)


@makes("map", "grouped")
def _grouped(rng, at):
    groups = pick(rng, (2, 4))
    if at.channels % groups or at.channels == groups:
        return None
    wide = max(other(rng, at, groups), 2 * groups)
    layer = same(at, at.channels, wide, groups=groups)
    norm = NORM[len(at.size)](wide)
    return Block(replace(at, channels=wide), lambda m, x: F.relu(m.bn(m.c(x))), c=layer, bn=norm)


@makes("map", "depthwise", "depthwise_multiplier")
def _depthwise(rng, at, kind):
    wide = at.channels * (1 if kind == "depthwise" else pick(rng, (2, 3)))
    if wide > MOST:
        return None
    return Block(
        replace(at, channels=wide),
        lambda m, x: F.relu6(m.bn(m.c(x))),
        c=same(at, at.channels, wide, groups=at.channels, bias=coin(rng)),
        bn=NORM[len(at.size)](wide),
    )


@makes("map", "residual", "add_in_place")
def _residual(rng, at, kind):
    hidden, norm = other(rng, at), NORM[len(at.size)]

    def run(m, x):
        y = m.bn2(m.c2(F.relu(m.bn1(m.c1(x)))))
        if kind == "add_in_place":
            y += x
            return F.relu_(y)
        return F.relu(x + y)

    return Block(
        at,
        run,
        c1=same(at, at.channels, hidden, 1),
        bn1=norm(hidden),
        c2=same(at, hidden, at.channels, bias=False),
        bn2=norm(at.channels),
    )


@makes("map", "concat")
def _concat(rng, at):
    wide = other(rng, at)
    if at.channels + wide > MOST:
        return None
    first = coin(rng)

    def run(m, x):
        y = F.relu(m.c(x))
        return torch.cat([x, y] if first else [y, x], 1)

    return Block(replace(at, channels=at.channels + wide), run, c=same(at, at.channels, wide))


@makes("map", "chunk", "split", "slices")
def _halves(rng, at, kind):
    """The input's halves: one convolved and both joined again, or one gating the other."""
    if at.channels % 2:
        return None
    half, use = at.channels // 2, pick(rng, ("rest", "gate", "grow", "swap", "add"))
    wide = other(rng, at) if use == "rest" else half

    def run(m, x):
        if kind == "chunk":
            a, b = x.chunk(2, 1)
        elif kind == "split":
            a, b = torch.split(x, x.shape[1] // 2, 1)
        else:
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        if use == "gate":
            return m.c(a) * torch.sigmoid(b)
        if use == "grow":  # C2f's way
            return torch.cat([a, b, F.relu(m.c(b))], 1)
        if use == "swap":
            return torch.cat([F.relu(m.c(b)), a], 1)
        return a + m.c(b) if use == "add" else torch.cat([a, F.relu(m.c(b))], 1)

    out = {"rest": half + wide, "gate": half, "grow": 3 * half, "swap": 2 * half, "add": half}[use]
    return Block(replace(at, channels=out), run, c=same(at, half, wide)) if half > 1 else None


@makes("map", "shuffle")
def _shuffle(rng, at):
    groups = pick(rng, (2, 3, 4))
    if at.channels % groups or at.channels == groups:
        return None
    literal = coin(rng)

    def run(m, x):
        n, c, *size = x.shape
        split = (n, groups, c // groups, *size) if literal else (n, groups, -1, *size)
        return x.view(split).transpose(1, 2).reshape(n, c, *size)

    return Block(at, run)


@makes("map", "se", "se_linear")
def _se(rng, at, kind):
    hidden, act = pick(rng, (3, 4)), pick(rng, (torch.sigmoid, F.hardsigmoid))

    def run(m, x):
        y = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        y = y.flatten(1) if kind == "se_linear" else y
        gate = act(m.up(F.relu(m.down(y))))
        return x * gate.reshape(gate_shape(x)) if kind == "se_linear" else x * gate

    if kind == "se_linear":
        return Block(
            at, run, down=nn.Linear(at.channels, hidden), up=nn.Linear(hidden, at.channels)
        )
    return Block(
        at, run, down=same(at, at.channels, hidden, 1), up=same(at, hidden, at.channels, 1)
    )


@makes("map", "max_pool", "avg_pool")
def _pool(rng, at, kind):
    if min(at.size) < 4:
        return None
    pool = (MAX_POOL if kind == "max_pool" else AVG_POOL)[len(at.size)]
    return Block(replace(at, size=tuple(s // 2 for s in at.size)), lambda m, x: pool(x, 2))


@makes("map", "upsample")
def _upsample(rng, at):
    if max(at.size) > 5:
        return None
    mode = pick(rng, ("nearest", {1: "linear", 2: "bilinear", 3: "trilinear"}[len(at.size)]))
    out = replace(at, size=tuple(2 * s for s in at.size))
    return Block(out, lambda m, x: F.interpolate(x, scale_factor=2, mode=mode))


@makes("map", "pixel_shuffle")
def _pixel_shuffle(rng, at):
    if len(at.size) != 2 or min(at.size) < 2:
        return None
    wide, half = pick(rng, (4, 6)), max(at.size) > 4
    size = tuple(s // 2 * 2 if half else 2 * s for s in at.size)
    layer = same(at, at.channels, 4 * wide, 1)

    def run(m, x):
        return F.relu(F.pixel_shuffle(m.c(F.avg_pool2d(x, 2) if half else x), 2))

    return Block(replace(at, channels=wide, size=size), run, c=layer)


@makes("map", "sigmoid", "softplus")
def _shifted(rng, at, kind):
    """Activations that are not zero at zero."""
    act = torch.sigmoid if kind == "sigmoid" else F.softplus
    wide = other(rng, at)
    layer = same(at, at.channels, wide)
    return Block(replace(at, channels=wide), lambda m, x: act(m.c(x)), c=layer)


@makes("map", "channel_mean", "channel_max")
def _over_channels(rng, at, kind):
    """A gate over positions, as in spatial attention."""

    def run(m, x):
        y = x.mean(1, keepdim=True) if kind == "channel_mean" else x.amax(1, keepdim=True)
        return x * torch.sigmoid(y)

    return Block(at, run)


@makes("map", "multiply")
def _multiply(rng, at):
    wide, act = other(rng, at), pick(rng, (torch.sigmoid, F.relu, lambda x: x))
    return Block(
        replace(at, channels=wide),
        lambda m, x: m.a(x) * act(m.b(x)),
        a=same(at, at.channels, wide),
        b=same(at, at.channels, wide, 1),
    )


@makes("map", "map_scale")
def _map_scale(rng, at):
    gamma = parameter(at.channels, *[1] * len(at.size))
    layer = same(at, at.channels, at.channels, 1)
    return Block(at, lambda m, x: x + m.gamma * F.relu(m.c(x)), c=layer, gamma=gamma)


@makes("map", "convnext")
def _convnext(rng, at):
    c, hidden = at.channels, other(rng, at)

    def run(m, x):
        y = m.norm(m.c(x).movedim(1, -1))
        return x + (m.gamma * m.down(F.gelu(m.up(y)))).movedim(-1, 1)

    return Block(
        at,
        run,
        c=same(at, c, c, groups=c),
        norm=nn.LayerNorm(c),
        up=nn.Linear(c, hidden),
        down=nn.Linear(hidden, c),
        gamma=parameter(c),
    )


@makes("map", "shared", "shared_sizes")
def _shared(rng, at, kind):
    """One layer called twice: in a row, on two branches, or on maps of two sizes."""
    if kind == "shared_sizes" and min(at.size) < 4:
        return None
    row, pool, up = coin(rng), MAX_POOL[len(at.size)], "nearest"

    def run(m, x):
        y = F.relu(m.c(x))
        if kind == "shared_sizes":
            small = F.relu(m.c(pool(x, 2)))
            return y + F.interpolate(small, size=y.shape[2:], mode=up)
        return F.relu(m.c(y)) if row else y + F.relu(m.c(m.d(x)))

    wide = other(rng, at)
    if kind == "shared_sizes":
        return Block(replace(at, channels=wide), run, c=same(at, at.channels, wide))
    c = at.channels
    return Block(at, run, c=same(at, c, c), **({} if row else {"d": same(at, c, c, 1)}))


@makes("map", "tied")
def _tied(rng, at):
    one, two = (same(at, at.channels, at.channels) for _ in range(2))
    two.weight = one.weight
    return Block(at, lambda m, x: F.relu(m.c2(F.relu(m.c1(x)))), c1=one, c2=two)


@makes("map", "in_place")
def _in_place(rng, at):
    wide, act = other(rng, at), pick(rng, (F.relu_, F.leaky_relu_, lambda x: x.mul_(0.5).tanh_()))
    layer = same(at, at.channels, wide)
    return Block(replace(at, channels=wide), lambda m, x: act(m.c(x)), c=layer)


@makes("map", "maxout", "stack")
def _reduced(rng, at, kind):
    """A new axis that goes again: neighbours in pairs, or two branches."""
    if at.channels % 2 or at.channels == 2:
        return None
    if kind == "maxout":
        out = replace(at, channels=at.channels // 2)
        return Block(out, lambda m, x: x.reshape(x.shape[0], -1, 2, *x.shape[2:]).amax(2))
    layer = same(at, at.channels, at.channels)
    return Block(at, lambda m, x: torch.stack([x, m.c(x)], 1).sum(1), c=layer)


# -- traps: what looks elementwise and is not, or names channels by number --------------------

TRAPS = {
    "channel_softmax": lambda x: x * x.softmax(1),
    "channel_flip": lambda x: x + x.flip(1),
    "channel_roll": lambda x: x + x.roll(1, 1),
    "channel_cumsum": lambda x: x.cumsum(1),
    "channel_norm": lambda x: F.normalize(x, dim=1),
    "channel_sort": lambda x: x.sort(1).values,
    "numbered": lambda x: torch.cat([2 * x[:, :2], x[:, 2:]], 1),
    "counted": lambda x: x * x.shape[1] / 8,
    "branch": lambda x: x if bool(x.sum() > 0) else 2 * x,
    "fourier": lambda x: x + torch.fft.fft(x, dim=-1).abs(),
    "einsum": lambda x: torch.einsum("nc...,nd...->nc...", x, x),
    "instance_norm": lambda x: F.instance_norm(x),
    "other_axis": lambda x: x + x.movedim(1, -1).reshape(x.shape[0], -1).sum(1).view(gate_one(x)),
}


def gate_one(x):
    return (-1, *[1] * (x.ndim - 1))


@makes("map", *TRAPS)
def _trap(rng, at, kind):
    if min(at.size) < 2:
        return None
    wide, trap = other(rng, at), TRAPS[kind]
    layer = same(at, at.channels, wide)
    return Block(replace(at, channels=wide), lambda m, x: trap(torch.tanh(m.c(x))), c=layer)


# -- from one form to another ----------------------------------------------------------------


@makes("map", "pooled")
def _pooled(rng, at):
    way, adaptive = pick(rng, ("mean", "adaptive", "max")), ADAPTIVE[len(at.size)]

    def run(m, x):
        if way == "adaptive":
            return torch.flatten(adaptive(x, 1), 1)
        dims = tuple(range(2, x.ndim))
        return x.mean(dims) if way == "mean" else x.amax(dims)

    return Block(At("vector", at.channels), run)


@makes("map", "flatten")
def _flatten(rng, at):
    wide, target = pick(rng, WIDTHS), pick(rng, (1, 2, 2))
    pool = ADAPTIVE[len(at.size)]
    way = coin(rng)

    def run(m, x):
        x = pool(x, target)
        return F.relu(m.fc(x.flatten(1) if way else x.reshape(x.shape[0], -1)))

    layer = nn.Linear(at.channels * target ** len(at.size), wide)
    return Block(At("vector", wide), run, fc=layer)


@makes("map", "tokens")
def _to_tokens(rng, at):
    flat = coin(rng)
    out = At("tokens", at.channels, (int(np.prod(at.size)),), at.size)
    if flat or len(at.size) != 2:
        return Block(out, lambda m, x: x.flatten(2).transpose(1, 2))
    return Block(out, lambda m, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]))


@makes("tokens", "token_mean")
def _token_mean(rng, at):
    return Block(At("vector", at.channels), lambda m, x: x.mean(1))


@makes("tokens", "token_first")
def _token_first(rng, at):
    return Block(At("vector", at.channels), lambda m, x: x[:, 0])


@makes("tokens", "to_map")
def _to_map(rng, at):
    if not at.grid:
        return None
    return Block(
        At("map", at.channels, at.grid),
        lambda m, x: x.transpose(1, 2).reshape(x.shape[0], -1, *at.grid),
    )


# -- tokens ----------------------------------------------------------------------------------


@makes("tokens", "token_linear")
def _token_linear(rng, at):
    wide = other(rng, at)
    layer = nn.Linear(at.channels, wide, bias=coin(rng))
    return Block(replace(at, channels=wide), lambda m, x: F.gelu(m.fc(x)), fc=layer)


def residual_mlp(rng, at, activation):
    hidden = other(rng, at)
    return Block(
        at,
        lambda m, x: x + m.fc2(activation(m.fc1(x))),
        fc1=nn.Linear(at.channels, hidden),
        fc2=nn.Linear(hidden, at.channels),
    )


@makes("tokens", "mlp")
def _mlp(rng, at):
    return residual_mlp(rng, at, F.gelu)


@makes("tokens", "token_norm")
def _token_norm(rng, at):
    return Block(at, lambda m, x: m.norm(x), norm=nn.LayerNorm(at.channels))


@makes("tokens", "pre_norm_mlp")
def _pre_norm_mlp(rng, at):
    hidden = other(rng, at)
    return Block(
        at,
        lambda m, x: x + m.fc2(F.gelu(m.fc1(m.norm(x)))),
        norm=nn.LayerNorm(at.channels),
        fc1=nn.Linear(at.channels, hidden),
        fc2=nn.Linear(hidden, at.channels),
    )


@makes("tokens", "token_mixing")
def _token_mixing(rng, at):
    n, hidden = at.size[0], other(rng, at)
    return Block(
        at,
        lambda m, x: x + m.fc2(F.gelu(m.fc1(x.transpose(1, 2)))).transpose(1, 2),
        fc1=nn.Linear(n, hidden),
        fc2=nn.Linear(hidden, n),
    )


@makes("tokens", "position")
def _position(rng, at):
    whole = coin(rng)
    pos = parameter(1, *at.size, at.channels) if whole else parameter(*at.size, at.channels)
    return Block(at, lambda m, x: x + m.pos, pos=pos)


@makes("tokens", "cls")
def _cls(rng, at):
    return Block(
        replace(at, size=(at.size[0] + 1,), grid=()),
        lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1),
        cls=parameter(1, 1, at.channels),
    )


@makes("tokens", "token_scale")
def _token_scale(rng, at):
    return Block(
        at,
        lambda m, x: x + m.fc(x) * m.gamma,
        fc=nn.Linear(at.channels, at.channels),
        gamma=parameter(at.channels),
    )


@makes("tokens", "token_gate")
def _token_gate(rng, at):
    """A gated linear unit: both halves from one layer."""
    hidden, way = other(rng, at), coin(rng)

    def run(m, x):
        a, b = m.fc1(x).chunk(2, -1) if way else m.fc1(x).split(m.fc1.out_features // 2, -1)
        return x + m.fc2(a * F.silu(b))

    return Block(
        at, run, fc1=nn.Linear(at.channels, 2 * hidden), fc2=nn.Linear(hidden, at.channels)
    )


@makes("tokens", "token_concat")
def _token_concat(rng, at):
    wide = other(rng, at)
    if at.channels + wide > MOST:
        return None
    return Block(
        replace(at, channels=at.channels + wide),
        lambda m, x: torch.cat([x, F.relu(m.fc(x))], -1),
        fc=nn.Linear(at.channels, wide),
    )


class Attention(Block):
    """Counts as users' own blocks keep them."""

    def __init__(self, out, run, num_heads, head_dim, **layers):
        super().__init__(out, run, **layers)
        self.num_heads, self.head_dim, self.scale = num_heads, head_dim, head_dim**-0.5


@makes("tokens", "sdpa", "sdpa_scale", "matmul_attention", "sized_attention", "literal_attention")
def _attention(rng, at, kind):
    """Attention with q, k, v from one layer or three.

    The code knows the number of heads, by an attribute or (`literal`) by heart, and reads their
    width off the tensor or (`sized`) off an attribute.
    """
    heads, head = pick(rng, (1, 2, 3)), pick(rng, (3, 4))
    fused, wide = coin(rng), heads * head

    def run(m, x):
        n, t, _ = x.shape
        count = heads if kind == "literal_attention" else m.num_heads
        width = m.head_dim if kind == "sized_attention" else -1
        if fused:
            q, k, v = m.qkv(x).reshape(n, t, 3, count, width).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).reshape(n, t, count, width).transpose(1, 2) for f in (m.q, m.k, m.v))
        if kind == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif kind == "sdpa_scale":
            y = F.scaled_dot_product_attention(q, k, v, scale=m.scale)
        else:
            y = (q @ k.transpose(-2, -1) * m.scale).softmax(-1) @ v
        return x + m.proj(y.transpose(1, 2).reshape(n, t, count * width if width > 0 else -1))

    into = (
        {"qkv": nn.Linear(at.channels, 3 * wide)}
        if fused
        else {name: nn.Linear(at.channels, wide) for name in "qkv"}
    )
    return Attention(at, run, heads, head, **into, proj=nn.Linear(wide, at.channels))


@makes("tokens", "tied_transposed", "weight_alone")
def _outside(rng, at, kind):
    """Weights that are used without their layer: there and back by one, or never called."""
    wide = other(rng, at)
    layer = nn.Linear(at.channels, wide, bias=False)
    if kind == "tied_transposed":
        return Block(at, lambda m, x: F.linear(F.gelu(m.fc(x)), m.fc.weight.t()), fc=layer)
    out = replace(at, channels=wide)
    return Block(out, lambda m, x: F.gelu(x @ m.fc.weight.t()), fc=layer)


# -- vectors ---------------------------------------------------------------------------------


@makes("vector", "dense", "dense_bn", "dense_norm", "dense_sigmoid", "dense_prelu")
def _dense(rng, at, kind):
    wide = other(rng, at)
    after = {
        "dense": nn.ReLU,
        "dense_bn": lambda: nn.BatchNorm1d(wide),
        "dense_norm": lambda: nn.LayerNorm(wide),
        "dense_sigmoid": nn.Sigmoid,
        "dense_prelu": lambda: nn.PReLU(wide),
    }[kind]()
    layer = nn.Linear(at.channels, wide)
    return Block(replace(at, channels=wide), lambda m, x: m.then(m.fc(x)), fc=layer, then=after)


@makes("vector", "dense_residual")
def _dense_residual(rng, at):
    return residual_mlp(rng, at, F.relu)


@makes("vector", "dense_concat")
def _dense_concat(rng, at):
    wide = other(rng, at)
    if at.channels + wide > MOST:
        return None
    return Block(
        replace(at, channels=at.channels + wide),
        lambda m, x: torch.cat([F.relu(m.fc(x)), x], 1),
        fc=nn.Linear(at.channels, wide),
    )


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
