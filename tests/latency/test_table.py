"""Tables on disk, tables that do not fit, and what they predict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunekit as pk
from prunekit import zoo
from prunekit.allocation.costs import LatencyCost, total
from prunekit.core.target import Target
from prunekit.latency import Entry, LatencyTable, Protocol, Sample
from prunekit.latency.calibration import LEAST_SHARE, Calibration
from prunekit.profiling import HarvestPlan
from prunekit.support.errors import FileError, TableError
from support.laws import HERE, lawful, sampled
from support.nets import Depthwise, Residual, image
from support.tables import made, text


def test_tables_survive_the_disk(tmp_path):
    table = sampled(lawful)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    text = (tmp_path / "t.json").read_text()
    table.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == text


def test_an_edited_table_is_detected(tmp_path):
    path = tmp_path / "t.json"
    sampled(lawful).save(path)
    raw = json.loads(path.read_text())
    raw["entries"][0]["samples"][0]["us"] /= 2
    path.write_text(json.dumps(raw))
    with pytest.raises(FileError, match=r"t\.json was edited or damaged: its checksum does not"):
        LatencyTable.load(path)


def table_for(graph, skip=(), **changes):
    """A table that has every layer of a graph."""
    entries = []
    for number, shape in enumerate(dict.fromkeys(layer.shape for layer in graph.layers)):
        if number in skip:
            continue
        rows = [Sample(i, 4 * i + 4, 4 * i + 4, 10.0 + 4 * i, 0.1, 5) for i in range(3)]
        entries.append(Entry(shape, tuple(rows)))
    table = LatencyTable(
        Target("fake"), HERE, Protocol("harvest", 3, 1, 1, 0), 1, ("x",), tuple(entries), ()
    )
    return replace(table, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": Target("fake", batch=8)},
            "is for fake:cpu fp32, batch 8, 1 thread, not fake:cpu fp32, batch 1, 1 thread; "
            "run `prunekit profile` for this target",
        ),
        (
            {"target": Target("onnxruntime", threads=2)},
            "is for onnxruntime:cpu fp32, batch 1, 2 threads, not fake:cpu fp32",
        ),
        (
            {"environment": replace(HERE, device_name="another CPU")},
            "was measured elsewhere: device name 'another CPU' against 'fake device' here; "
            "run `prunekit profile` on this device",
        ),
        (
            {"environment": replace(HERE, runtime_version="0.9")},
            "was measured elsewhere: runtime version '0.9' against '1' here",
        ),
        ({"skip": (1,)}, "no timing for layer 'conv2' (conv 3x3 8x8 +add"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message):
    graph = pk.trace(Residual(), image())
    with pytest.raises(TableError) as caught:
        table_for(graph, **change).check(graph, Target("fake"), HERE)
    assert message in str(caught.value)


def test_tables_that_fit_are_not_refused():
    for model in (Residual(), Depthwise()):
        graph = pk.trace(model, image())
        table_for(graph).check(graph, Target("fake"), HERE)
        table_for(graph).check(graph, Target("fake"), replace(HERE, created="later"))
        table_for(graph, environment=replace(HERE, driver="1")).check(graph, Target("fake"), None)


def test_predictions_add_up_and_carry_their_range():
    graph = pk.trace(Residual(), image())
    table = table_for(graph, calibration=Calibration(2.0, -1.0, 0.02, 0.1, 5))
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)
    found = pk.predict(graph, plan, table)
    by_hand = sum(
        table.layer_us(layer, layer.width("in", plan.widths), layer.width("out", plan.widths))
        for layer in graph.layers
    )
    assert found.ms == pytest.approx(by_hand / 1e3)
    half = table.half_width(graph, plan.widths)
    assert (found.low_ms, found.high_ms) == pytest.approx(
        ((1 - half) * found.ms, (1 + half) * found.ms)
    )
    assert found.ms < pk.predict(graph, pk.ChannelPlan.dense(graph), table).ms
    assert total(graph, plan.widths, LatencyCost(table)) == pytest.approx(found.ms)


def test_no_layer_is_free_and_no_interval_is_reversed_where_calls_cost_less_than_nothing():
    graph = pk.trace(Residual().eval(), image(16))
    table = table_for(graph)
    usual = table.layer_us(graph.layers[0], 3, 8)
    odd = replace(table, calibration=Calibration(1.0, -1e3, factor=400.0))
    assert odd.layer_us(graph.layers[0], 3, 8) == pytest.approx(LEAST_SHARE * usual)
    found = pk.predict(graph, pk.ChannelPlan.dense(graph), odd)
    assert 0 <= found.low_ms < found.ms < found.high_ms


def test_a_table_of_a_narrower_model_is_refused():
    narrow, wide = zoo.build("resnet20", 10, 3).eval(), zoo.build("resnet20_w32", 10, 3).eval()
    example = torch.randn(1, 3, 16, 16)
    target = pk.Target.parse("fake")
    graph = pk.trace(narrow, example)
    table = pk.harvest(narrow, graph, example, target, plan=HarvestPlan(nets=4, rounds=1))
    table.check(graph, target, None)
    with pytest.raises(TableError, match=r"up to widths .*, not .*: it is of another model"):
        table.check(pk.trace(wide, example), target, None)


def test_a_table_from_before_sessions_is_read(tmp_path: Path):
    from prunekit.support.files import _digest

    table = made(0, 4)
    raw = json.loads(text(table))
    del raw["origin"]
    for row in raw["networks"]:
        del row["session"]
    raw["sha256"] = _digest(
        {k: v for k, v in raw.items() if k not in ("prunekit", "version", "sha256")}
    )
    (tmp_path / "old.json").write_text(json.dumps(raw))
    assert LatencyTable.load(tmp_path / "old.json") == table
