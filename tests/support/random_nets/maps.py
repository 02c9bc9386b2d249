"""Steps on feature maps, and those that leave them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from support.random_nets.base import (
    ACTIVATIONS,
    ADAPTIVE,
    AVG_POOL,
    MAX_POOL,
    MOST,
    NORM,
    TRANSPOSED,
    WIDTHS,
    At,
    Block,
    coin,
    gate_shape,
    makes,
    other,
    parameter,
    pick,
    same,
)


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
