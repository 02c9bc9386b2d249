"""Layer times from differences of networks where a runtime has none."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunekit as pk
from prunekit.latency import LatencyTable
from prunekit.profiling import (
    HarvestPlan,
    ProfileRequest,
    differences,
    harvest,
)
from prunekit.support.errors import NoLayerTimesError
from support.commands import ON_FAKE, Says
from support.devices import Be, Silent, predicted, truth
from support.tables import EXAMPLE, FAKE


def test_a_runtime_without_layer_times_is_fitted_by_differences(
    small_net, small_graph, device: Be, tmp_path: Path, capsys
):
    device(Silent, noise=0.01)
    plan = HarvestPlan(rounds=2, turns=2)
    with pytest.raises(NoLayerTimesError, match="tells no time"):
        harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan, granularity=8)
    table = differences(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, plan))
    assert table.protocol.source == "differences"
    assert table.calibration.nets >= 20
    plans = [pk.ChannelPlan.random(small_graph, k, 9, 8) for k in (0.4, 0.5, 0.7, 0.9)]
    real = truth(small_graph, small_net, tmp_path, plans)
    assert predicted(table, small_graph, plans) == pytest.approx(real, rel=0.1)
    assert 0 < table.calibration.mape < 0.06


def test_the_command_falls_back_and_says_so(device: Be, prunekit: Says, home: Path):
    device(Silent)
    status, out, err = prunekit("profile", "net.py:tiny", *ON_FAKE, "--rounds", 1, "-o", "t.json")
    assert (status, out) == (0, "latency table: t.json\n")
    assert "differences of whole networks are taken, 24 of them" in err
    assert LatencyTable.load(home / "t.json").protocol.source == "differences"
