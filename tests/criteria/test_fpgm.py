"""FPGM: distances between filters, also in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import prunekit as pk
from prunekit.criteria import MagnitudeL1, fpgm
from support.scoring import channels_of, linear, norm, scored


def test_several_positions_are_one_filter():
    """Two rows per channel score as the one row that they are together."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    slopes = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    positions = [[0, 3], [1, 4], [2, 5]]
    many, one = linear(rows.tolist()), linear(torch.cat([rows[:3], rows[3:]], 1).tolist())
    many.weight.grad, one.weight.grad = slopes, torch.cat([slopes[:3], slopes[3:]], 1)
    for make in (pk.Magnitude, MagnitudeL1, pk.LAMP, pk.FPGM, pk.TaylorWeight):
        found = scored(make(), channels_of("a", positions=positions), {"a": many})
        assert found == pytest.approx(scored(make(), channels_of("a"), {"a": one}), rel=1e-6)
    modules = {"a": many, "bn": norm([1.0, 2.0, 3.0, 3.0, -4.0, 9.0])}
    group = channels_of("a", "bn", roles=["out", "both"], positions=positions)
    for reduce, expected in (("mean", [2, 3, 6]), ("sum", [4, 6, 12]), ("max", [3, 4, 9])):
        assert scored(pk.BNScale(reduce=reduce), group, modules) == pytest.approx(expected)


def test_distances_in_blocks_are_the_same(monkeypatch):
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    group = channels_of("a", positions=np.arange(40)[:, None])
    whole = scored(pk.FPGM(normalize="none"), group, {"a": linear(rows.tolist())})
    monkeypatch.setattr(fpgm, "BLOCK", 130)
    blocks = scored(pk.FPGM(normalize="none"), group, {"a": linear(rows.tolist())})
    assert blocks == pytest.approx(whole, rel=1e-8)
    expected = (rows[:, None] - rows[None]).double().norm(dim=2).sum(1).numpy()
    assert whole == pytest.approx(expected, rel=1e-6)


def test_the_filter_in_the_middle_is_the_one_that_others_can_replace():
    layer = linear([[9.0, 1.0], [10.0, 0.0], [8.0, 1.0], [9.0, 9.0]])
    group = channels_of("a", positions=np.arange(4)[:, None])
    found = scored(pk.FPGM(), group, {"a": layer})
    assert found.argmin() == 0  # although its norm is not the smallest
    assert found.argmax() == 3
    twins = linear([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
    assert list(scored(pk.FPGM(), channels_of("a"), {"a": twins})) == pytest.approx(
        [0.75, 0.75, 1.5]
    )
