"""The proof by a masked copy: in float32 where the model insists, left out when asked."""

from __future__ import annotations

import torch

import prunekit as pk
from support.nets import (
    Residual,
)
from support.structures import IMAGE, Chunks


def test_a_model_that_insists_on_float32_is_proved_in_float32():
    class Insists(Residual):
        def forward(self, x):
            return super().forward(x.to(torch.float32))

    graph = pk.trace(Insists(), IMAGE)
    assert {g.id for g in graph.groups if g.prunable} == {"stem", "conv1"}


def test_validation_can_be_left_out():
    graph = pk.trace(Chunks(), IMAGE, validate=False)
    assert graph.group("a").prunable
