"""Layers and activations as terms of the allocation problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunekit.allocation.costs import CostModel, layer_cost
from prunekit.allocation.solvers import Term
from prunekit.core.graph import Layer, Side

Widths = NDArray[np.int64]


def layer_term(layer: Layer, costs: CostModel) -> Term:
    """What a layer costs at its in- and out-width."""
    known: dict[tuple[int, int], NDArray[np.float64]] = {}

    def cost(cin: Widths, cout: Widths) -> NDArray[np.float64]:
        if cin.ndim or cout.ndim:
            return layer_cost(costs, layer, cin, cout)
        pair = int(cin), int(cout)  # solvers ask for the same single widths over and over
        if pair not in known:
            known[pair] = layer_cost(costs, layer, cin, cout)
        return known[pair]

    sides = {
        side: tuple((span.group, span.repeat) for span in spans)
        for side, spans in (("in", layer.in_spans), ("out", layer.out_spans))
    }
    fixed_in = layer.in_channels - sum(s.size * s.repeat for s in layer.in_spans)
    fixed_out = layer.out_channels - sum(s.size * s.repeat for s in layer.out_spans)
    return Term(layer.name, sides["in"], fixed_in, sides["out"], fixed_out, cost)


def activation_term(sides: tuple[Side, ...], size: int) -> Term:
    """``size`` bytes times the positions on one side or two."""

    def cost(cin: Widths, cout: Widths) -> NDArray[np.float64]:
        return np.asarray(float(size) * cin * cout, dtype=np.float64)

    one, other = sides if len(sides) == 2 else (*sides, Side(1, ()))
    return Term("activations", _parts(one), one.fixed, _parts(other), other.fixed, cost)


def together_term(block: str, one: str, other: str, price: float) -> Term:
    """Makes plans impossible in which one of two groups is gone and the other is not."""

    def cost(cin: Widths, cout: Widths) -> NDArray[np.float64]:
        return np.where((cin == 0) != (cout == 0), price, 0.0)

    return Term(f"{block} as a whole", ((one, 1),), 0, ((other, 1),), 0, cost)


def _parts(side: Side) -> tuple[tuple[str, int], ...]:
    return tuple((span.group, span.repeat) for span in side.spans)
