"""Staircases drawn from tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

import prunekit as pk
from prunekit.latency.staircase import dearest, find_shapes, staircases
from prunekit.profiling import harvest
from prunekit.support.errors import UsageError
from support.nets import Depthwise
from support.tables import EXAMPLE, FAKE, QUICK, profile


def test_a_staircase_is_flat_within_a_block_and_rises_at_its_border(small_net, small_graph, device):
    table = profile(small_net, small_graph)
    shape = next(s for s in table.by_shape if str(s) == "conv 3x3 8x8 +relu")
    out, into = staircases(table, shape)
    assert (out.side, out.full, into.side, into.full) == ("out", 64, "in", 64)
    for stair in (out, into):
        assert stair.widths.tolist() == list(range(1, 65))
        assert len({round(us, 9) for us in stair.us[8:16]}) == 1
        assert stair.us[15] < stair.us[16]
        assert [width for width, _ in stair.steps(16)] == list(range(8, 65, 8))
        assert [width for width, _ in stair.steps(2)] == [32, 64]
        corners = stair.corners()
        borders = {(a[0], b[0]) for a, b in pairwise(corners) if a[1] < b[1]}
        assert {(8, 8), (16, 16), (24, 24)} <= borders
    assert len(out.spots) == len(table.by_shape[shape].samples)
    for spot in out.spots:
        assert spot.measured_us == pytest.approx(spot.predicted_us, rel=0.02)
        assert spot.carried_us == pytest.approx(out.us[spot.width - 1], rel=0.02)
        assert spot.there == (spot.cin == 64)
    assert any(spot.there for spot in out.spots)
    assert not all(spot.there for spot in out.spots)


def test_a_depthwise_layer_has_one_staircase(device):
    small_net = Depthwise().eval()
    small_graph = pk.trace(small_net, EXAMPLE)
    table = harvest(
        small_net, small_graph, EXAMPLE, FAKE, plan=replace(QUICK, nets=4), granularity=4
    )
    shape = next(s for s in table.by_shape if s.kind == "depthwise")
    (stair,) = staircases(table, shape)
    assert stair.side == "both"
    assert all(spot.there for spot in stair.spots)


def test_shapes_are_found_by_their_text(small_net, small_graph, device):
    table = profile(small_net, small_graph)
    every = dearest(table)
    assert {*every} == {*table.by_shape}
    assert find_shapes(table, "CONV") == [s for s in every if s.kind == "conv"]
    assert [str(s) for s in find_shapes(table, "linear")] == ["linear"]
    dear = [float(table.shape_us(s, 8, 8)) for s in (every[0], every[-1])]
    assert dear[0] > dear[1]
    with pytest.raises(UsageError, match=r"no layer shape of this table matches --layer 'pool'; "):
        find_shapes(table, "pool")
