"""Flattened and concatenated channels, expansions."""

from __future__ import annotations

from torch import nn

import prunekit as pk
from support.nets import (
    Concat,
    Flatten,
    conv,
)
from support.structures import IMAGE


def test_a_flatten_repeats_its_channels():
    graph = pk.trace(Flatten(), IMAGE)
    linear = next(layer for layer in graph.layers if layer.name == "f")
    assert [(s.group, s.size, s.repeat) for s in linear.in_spans] == [("a", 8, 16)]
    assert linear.width("in", {"a": 3}) == 48


def test_a_concatenation_is_read_in_order():
    graph = pk.trace(Concat(), IMAGE)
    reader = next(layer for layer in graph.layers if layer.name == "c")
    assert [(s.group, s.size) for s in reader.in_spans] == [("a", 8), ("b", 6)]
    assert reader.width("in", {"a": 5, "b": 2}) == 7


class Literal(nn.Module):
    """Expands to a width that is written down."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(3, 8), conv(8, 4)

    def forward(self, x):
        return self.two(self.one(x) * x.mean(1, keepdim=True).expand(-1, 8, -1, -1))


def test_an_expansion_to_a_fixed_width_stays():
    first = pk.trace(Literal(), IMAGE).groups[0]
    assert first.reason.startswith("the slim network fails: The size of tensor a")
