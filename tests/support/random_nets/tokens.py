"""Steps on tokens and on vectors."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from support.random_nets.base import MOST, At, Block, coin, makes, other, parameter, pick


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
