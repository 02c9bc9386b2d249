"""Tables moved to another device: two numbers fitted, errors told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.latency import LatencyTable, diff, merge
from prunekit.profiling import HarvestPlan, ProfileRequest, transfer
from prunekit.profiling.transferring import TRANSFER_NETS
from prunekit.support.errors import TableError
from support.commands import ON_FAKE, Says
from support.tables import EXAMPLE, FAKE, Other, predicted, profile

FEW = HarvestPlan(nets=TRANSFER_NETS)


class Unwatched(Other):
    """No layer of it can be profiled."""

    def profiler(self, artifact: Artifact, target: Target) -> NoReturn:
        raise AssertionError("a transfer has profiled layers")


def test_a_transfer_fits_scale_and_cost_per_call_and_nothing_else(small_net, small_graph, device):
    table = profile(small_net, small_graph)
    device(Unwatched, slower=1.4)
    moved = transfer(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, FEW, "net"), table)
    device(Other, slower=1.4)
    assert moved.environment.device_name == "another fake"
    assert moved.origin == table.environment
    assert moved.protocol.source == "transfer from fake device, 1"
    assert moved.entries == table.entries
    assert moved.calibrated() == moved
    assert len(moved.networks) == 5
    assert moved.networks[0].end_to_end_us == pytest.approx(
        1.4 * table.networks[0].end_to_end_us, rel=1e-3
    )
    there = predicted(profile(small_net, small_graph), small_graph)
    assert predicted(moved, small_graph) == pytest.approx(there, rel=0.01)
    assert np.abs(predicted(table, small_graph) / there - 1).min() > 0.2
    assert moved.calibration.nets == 3
    assert moved.calibration.mape <= moved.calibration.worst < 0.025
    moved.check(small_graph, FAKE, moved.environment)


def test_the_error_of_a_transfer_tells_that_the_device_is_of_another_kind(
    small_net, small_graph, device
):
    table = profile(small_net, small_graph)
    device(Other, layer_us=60.0)
    usual = transfer(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, FEW), table).calibration
    assert usual.worst < 0.02  # a cost per call is what is fitted
    device(Other, block=32, layer_us=0.1)
    odd = transfer(
        ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, FEW, granularity=8), table
    ).calibration
    assert odd.worst > 0.1


def test_a_transfer_of_a_merged_and_of_a_transferred_table(
    small_net, small_graph, device, tmp_path
):
    first = profile(small_net, small_graph, (1, 2))
    device(slower=1.1)
    joined = merge([first, profile(small_net, small_graph, (2, 2))])
    device(Other, slower=2.0)
    moved = transfer(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, FEW), joined)
    there = predicted(profile(small_net, small_graph), small_graph)
    assert predicted(moved, small_graph) == pytest.approx(there, rel=0.01)
    again = transfer(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, FEW), moved)
    assert predicted(again, small_graph) == pytest.approx(there, rel=0.01)
    assert again.origin == joined.environment
    again.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == again
    with pytest.raises(TableError, match=r"cannot merge two: its layers were measured on fake dev"):
        merge([profile(small_net, small_graph), again], ["one", "two"])
    assert diff(moved, again).networks == 1  # the dense one
    larger = tuple(
        replace(entry, shape=replace(entry.shape, in_hw=(99, 99))) for entry in again.entries
    )
    assert diff(moved, replace(again, entries=larger)).ratio is None  # at another input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": Target("onnxruntime")}, "its runtime is onnxruntime, not fake"),
        ({"target": Target("fake", "cuda:1")}, "its device is cuda, not cpu"),
        ({"target": Target("fake", precision="fp16")}, "its precision is fp16, not fp32"),
        ({"target": Target("fake", batch=8)}, "its batch is 8, not 1"),
        ({"target": Target("fake", threads=4)}, "its threads is 4, not 1"),
        ({"granularity": 16, "probe": None}, "its device works in 16 channels, this one in 8"),
    ],
)
def test_tables_that_cannot_be_transferred(change, message, prunekit: Says, home: Path):
    replace(LatencyTable.load("table.json"), **change).save("other.json")
    before = sorted(home.iterdir())
    profiled = ("profile", "net.py:tiny", *ON_FAKE, "-o", "new.json", "-q")
    status, _, err = prunekit(*profiled, "--transfer", "other.json")
    assert status == 2
    assert err.startswith(f"prunekit: cannot transfer the latency table: {message}; ")
    assert len(err.splitlines()) == 1
    assert sorted(home.iterdir()) == before
