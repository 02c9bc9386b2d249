"""The probe: blocks of a device, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.latency import LatencyTable
from prunekit.profiling import (
    HarvestPlan,
    harvest,
)
from prunekit.profiling.probing import probe
from support.devices import Be
from support.tables import EXAMPLE, FAKE


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_the_probe_finds_the_block_of_a_device(block: int, device: Be):
    device(block=block, noise=0.02)
    found = probe(FAKE)
    assert found.granularity == block
    assert {kind.block for kind in found.kinds} == {block}
    assert not found.cliffs


def test_the_probe_is_the_default_granularity_and_stays_in_the_table(
    small_net, small_graph, device: Be, tmp_path: Path
):
    device(block=4)
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=4, rounds=1))
    assert (table.granularity, table.probe.nominal) == (4, 4)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json").probe == table.probe
    asked = harvest(
        small_net, small_graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=4, rounds=1), granularity=16
    )
    assert (asked.granularity, asked.probe) == (16, None)
