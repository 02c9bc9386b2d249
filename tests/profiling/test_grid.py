"""Grids of single operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.latency import merge
from prunekit.profiling import (
    HarvestPlan,
    ProfileRequest,
    grid,
    sample_plans,
)
from prunekit.support.errors import TableError
from support.commands import Says
from support.devices import predicted, truth
from support.nets import conv
from support.tables import EXAMPLE, FAKE


def test_a_grid_of_single_operators(small_net, small_graph, tmp_path: Path, prunekit: Says):
    journal = tmp_path / "grid.jsonl"
    plan = HarvestPlan(max_seconds=3)
    table = grid(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, plan, journal=journal))
    assert table.protocol.source == "grid"
    assert {e.shape for e in table.entries} == {x.shape for x in small_graph.layers}
    plans = sample_plans(small_graph, 8, 8, seed=5)
    real = truth(small_graph, small_net, tmp_path, plans)
    assert predicted(table, small_graph, plans) == pytest.approx(real, rel=0.12)
    with pytest.raises(TableError, match="were not watched in networks"):
        merge([table, table])
    # what was measured stays measured, and no more is when the time is over
    late = replace(plan, max_seconds=0.5)
    kept = grid(
        ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, late, journal=journal, resume=True)
    )
    assert {e.shape: e.samples for e in kept.entries} == {e.shape: e.samples for e in table.entries}
    assert kept.protocol.stopped in ("0.5 s", "all rounds")
    none = replace(plan, max_seconds=0.0)
    assert (
        grid(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, none)).protocol.stopped == "0 s"
    )


class Grouped(nn.Module):
    """A grouped convolution, whose groups go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=8)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.grouped(self.first(x).relu()).relu().mean((2, 3)))


def test_a_grid_times_grouped_layers_with_the_groups_that_are_left():
    model = Grouped().eval()
    small_graph = pk.trace(model, EXAMPLE)
    table = grid(
        ProfileRequest(model, small_graph, EXAMPLE, FAKE, HarvestPlan(max_seconds=2), granularity=4)
    )
    (entry,) = (e for e in table.entries if e.shape.groups == 8)
    assert {(s.cin, s.cout) for s in entry.samples} <= {(4 * k, 8 * k) for k in range(1, 9)}
    assert len(entry.samples) > 2
