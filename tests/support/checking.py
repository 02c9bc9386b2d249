"""Whether the slim network is the masked one, and as wide and as cheap as predicted."""

from __future__ import annotations

import functools

import prunekit as pk
from support.nets import image
from support.random_nets import (
    PLAIN,
    Recipe,
    build,
    example,
)


def traced_net(net):
    return pk.trace(net.eval(), image())


EXACT = frozenset(PLAIN)
"""Kinds the tracer follows so well that it needs no proof; networks of others are validated.

Those of `UNSEEN` can never be in it: no operator shows that their code names a number (of heads,
`x[:, :2]`, `x.shape[1]` as a factor), and only running the slim network does.
"""

ATTENTIONS = ("sdpa", "sdpa_scale", "matmul_attention", "sized_attention", "literal_attention")


@functools.cache
def traced(recipe: Recipe, heads: str = "whole") -> pk.ChannelGraph:
    proved = not recipe.kinds <= EXACT
    return pk.trace(build(recipe), example(recipe), validate=proved, heads=heads)
