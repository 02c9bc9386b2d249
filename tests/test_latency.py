"""Surfaces recover the laws behind their samples; tables are calibrated, kept and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from core_nets import Depthwise, Residual, image
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit as pk
from prunekit import zoo
from prunekit.allocation.costs import LatencyCost, total
from prunekit.core.graph import LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample, Surface
from prunekit.latency.calibration import LEAST_SHARE, Calibration
from prunekit.latency.surface import pad
from prunekit.profiling import HarvestPlan
from prunekit.support.errors import FileError, TableError

HERE = Environment("fake device", "1")


def blocks(width, block):
    return -(-np.asarray(width) // block) * block


def law(coefficients, cin, cout, block):
    a, b, c, d = coefficients
    left, right = blocks(cin, block), blocks(cout, block)
    return a + b * left + c * right + d * left * right


def widths(rng, count, block, top=256):
    """Pairs of widths, not below one block."""
    return rng.integers(block, top + 1, (2, count))


COEFFICIENTS = st.tuples(
    st.floats(5, 50), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(1e-4, 0.02)
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(COEFFICIENTS, st.sampled_from([1, 8, 16]), st.integers(0, 99))
def test_a_surface_recovers_a_bilinear_law_with_padding(coefficients, block, seed):
    rng = np.random.default_rng(seed)
    cin, cout = widths(rng, 12, block)
    surface = Surface.fit(cin, cout, law(coefficients, cin, cout, block), block)
    cin, cout = widths(rng, 200, block)
    assert surface.us(cin, cout) == pytest.approx(law(coefficients, cin, cout, block), rel=1e-3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(COEFFICIENTS, st.integers(0, 99))
def test_noise_is_averaged_and_not_followed(coefficients, seed):
    rng = np.random.default_rng(seed)
    cin, cout = widths(rng, 40, 8)
    truth = law(coefficients, cin, cout, 8)
    surface = Surface.fit(cin, cout, truth * np.exp(0.02 * rng.standard_normal(40)), 8)
    error = np.abs(surface.us(cin, cout) / truth - 1)
    assert error.mean() < 0.02
    assert error.max() < 0.08


def test_a_depthwise_surface_depends_on_one_width():
    width = np.array([8, 16, 40, 64])
    surface = Surface.fit(width, width, 3 + 0.5 * width, 8, diagonal=True)
    assert surface.coefficients == pytest.approx((3, 0, 0.5, 0), abs=1e-9)
    assert surface.us(24, 24) == pytest.approx(15)
    assert surface.us(np.array([8, 16]), np.array([8, 16])) == pytest.approx([7, 11])


def test_widths_below_one_block_run_as_they_are():
    assert pad(np.array([1, 7, 8, 9, 16, 17]), 8).tolist() == [1, 7, 8, 16, 16, 24]
    assert pad(np.array([0, 5]), 1).tolist() == [1, 5]


def test_one_sample_gives_its_own_value():
    surface = Surface.fit([64], [64], [25.0])
    assert surface.us(64, 64) == pytest.approx(25.0, rel=1e-3)
    assert surface.us(np.array([[64], [64]]), np.array([64, 64])).shape == (2, 2)


def test_a_cliff_that_no_bilinear_law_has_is_followed():
    """Weights that outgrow a cache: twice the time above 128 channels."""
    cin = np.array([16, 32, 64, 96, 128, 160, 192, 224, 256] * 2)
    cout = np.repeat([64, 128], 9)
    truth = law((5, 0.1, 0.1, 0.01), cin, cout, 8) * np.where(cin > 128, 2, 1)
    surface = Surface.fit(cin, cout, truth, 8)
    trend = replace(surface, variance=0.0)
    error, without = (np.abs(s.us(cin, cout) / truth - 1) for s in (surface, trend))
    assert error.mean() < 0.07 < 0.2 < without.mean()
    assert error.max() < 0.25 < without.max()


def shapes(count):
    return [
        LayerShape("conv", (3, 3), (1, 1), (1, 1), 1, (8 + i, 8 + i), (8 + i, 8 + i))
        for i in range(count)
    ]


def made(measure, nets=8, layers=5, seed=0, scale=1.2, per_call=-1.0):
    """Entries and networks of a device whose layers take ``measure(layer, net, cin, cout)`` us."""
    rng = np.random.default_rng(seed)
    samples = [[] for _ in range(layers)]
    networks = []
    for net in range(nets):
        summed = 0.0
        for layer in range(layers):
            cin, cout = (int(w) for w in rng.integers(1, 17, 2) * 8)
            us = float(measure(layer, net, cin, cout))
            summed += us
            samples[layer].append(Sample(net, cin, cout, us, 0.1, 30))
        whole = scale * summed + per_call * layers
        networks.append(Network("net", 0.5, layers, summed, whole, 1.0, 30))
    entries = tuple(Entry(s, tuple(rows)) for s, rows in zip(shapes(layers), samples, strict=True))
    protocol = Protocol("harvest", nets, 3, 5, seed)
    table = LatencyTable(Target("fake"), HERE, protocol, 8, ("x",), entries, tuple(networks))
    return table.calibrated()


def lawful(layer, net, cin, cout):
    return law((20, 0.1, 0.2, 0.005 * (layer + 1)), cin, cout, 8)


def test_calibration_recovers_scale_and_cost_per_call():
    calibration = made(lawful).calibration
    assert calibration.scale == pytest.approx(1.2, rel=1e-3)
    assert calibration.per_call_us == pytest.approx(-1.0, abs=0.05)
    assert calibration.nets == 6  # the dense one and the fastest are in every fit


def test_the_error_of_nets_left_out_is_small_for_a_law_and_large_for_nonsense():
    good = made(lawful).calibration
    assert good.mape <= good.worst < 0.01
    rng = np.random.default_rng(1)
    noisy = made(lambda *a: lawful(*a) * np.exp(0.05 * rng.standard_normal())).calibration
    assert good.worst < noisy.mape < 0.1
    bad = made(lambda *a: float(np.exp(rng.uniform(0, 8)))).calibration
    assert bad.worst > bad.mape > 0.3


def test_too_few_nets_have_no_error():
    assert made(lawful, nets=3).calibration.nets == 0
    one = made(lawful, nets=1).calibration
    assert one.per_call_us == 0
    assert one.scale == pytest.approx(1.2, abs=0.05)


def test_tables_survive_the_disk(tmp_path):
    table = made(lawful)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    text = (tmp_path / "t.json").read_text()
    table.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text() == text


def test_an_edited_table_is_detected(tmp_path):
    path = tmp_path / "t.json"
    made(lawful).save(path)
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
