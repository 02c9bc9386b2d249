"""Outputs in any nesting, and where they cannot be found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import prunekit as pk
from prunekit.support.errors import ModelError
from support.nets import (
    Plain,
)
from support.structures import IMAGE, OUTPUT


def test_outputs_are_found_in_any_nesting_and_refused_where_they_cannot_be():
    @dataclass
    class Output:
        logits: torch.Tensor
        features: torch.Tensor

    class Wraps(Plain):
        wrapper: type = Output

        def forward(self, x):
            feature = F.relu(self.c1(x))
            return self.wrapper(self.fc(F.relu(self.c2(feature)).mean((2, 3))), feature)

    graph = pk.trace(Wraps(), IMAGE)
    assert graph.group("c1").reason == OUTPUT
    assert graph.group("c2").prunable

    class Opaque:
        def __init__(self, *values):
            self.values = values

    wraps = Wraps()
    wraps.wrapper = Opaque
    with pytest.raises(ModelError, match="returns a Opaque, in which tensors cannot be followed"):
        pk.trace(wraps, IMAGE)
