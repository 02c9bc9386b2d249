"""Whose time an executed node's is: named, shared, fused, unknown."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.runtimes.onnx_graph import Anchor, OnnxGraph, read
from prunekit.runtimes.openvino import runtime as ov_runtime
from prunekit.runtimes.openvino.nodes import Executed, Owners, layer_times, owners, single_runs
from prunekit.runtimes.openvino.runtime import OpenVino, OvEngine
from support.openvino import BF16, FP32, NETS, layers, needs_bf16

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("target", [FP32, BF16])
def test_every_executed_node_is_counted_once_and_told_by_name(exported, net, target):
    if target.precision == "bf16":
        needs_bf16()
    module, _, artifact = exported(net)
    engine = OvEngine(artifact, target, count=True)
    graph = read(artifact.path)
    executed = list(ov_runtime._executed(engine.compiled))
    owned = owners(executed, graph)
    engine.time(30)
    assert set(engine.counters()) <= set(owned.shares)
    for shares in owned.shares.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert set(shares) <= layers(module)
    told = [node for node in executed if node.name in owned.told and node.stands_for]
    assert {layer for node in told for layer in owned.shares[node.name]} == layers(module)
    engine.close()


def owner_of(executed, owned, *stands_for):
    (node,) = [node for node in executed if set(stands_for) <= set(node.stands_for)]
    (layer,) = owned.shares[node.name]
    return layer


def test_linear_layers_run_as_one_node_share_it(exported):
    _, _, artifact = exported("Flatten")
    engine = OvEngine(artifact, FP32)
    executed = list(ov_runtime._executed(engine.compiled))
    owned = owners(executed, read(artifact.path))
    shares = [s for s in owned.shares.values() if set(s) & {"f", "fc"} and set(s) <= {"f", "fc"}]
    if {len(s) for s in shares} == {1}:
        pytest.skip("this OpenVINO runs them apart")
    work = 128 * 10 + 10 * 4
    assert {"f": pytest.approx(1280 / work), "fc": pytest.approx(40 / work)} in shares
    engine.close()


def test_epilogues_go_with_the_layer_they_are_fused_into(exported):
    _, _, artifact = exported("Residual")
    graph = read(artifact.path)
    engine = OvEngine(artifact, FP32)
    executed = list(ov_runtime._executed(engine.compiled))
    owned = owners(executed, graph)
    nodes = {
        op: [n.name for n in onnx.load(artifact.path).graph.node if n.op_type == op]
        for op in ("Add", "Relu")
    }
    assert owner_of(executed, owned, nodes["Add"][0], nodes["Relu"][-1]) == "conv2"
    assert owner_of(executed, owned, nodes["Relu"][0]) == "stem"
    first, *_ = (node for node in executed if node.kind == "Reorder")
    assert owned.shares[first.name] == {"stem": 1.0}
    engine.close()


def test_what_follows_a_concat_goes_with_the_layer_that_reads_it(exported):
    _, _, artifact = exported("Concat")
    engine = OvEngine(artifact, FP32)
    executed = list(ov_runtime._executed(engine.compiled))
    owned = owners(executed, read(artifact.path))
    (concat,) = [node for node in executed if node.kind == "Concatenation"]
    assert owned.shares[concat.name] == {"c": 1.0}
    engine.close()


def graph_of(*anchors, nodes=()):
    owned = {anchor.node: anchor.layer for anchor in anchors} | dict(nodes)
    return OnnxGraph("net.onnx", {}, anchors, owned, {f"{name}_out": owned[name] for name in owned})


WIDE = Anchor("conv_a", "a", "Conv", 8, 16, (1, 1), (1, 1), 1, (4, 4), (4, 4))
DEEP = Anchor("conv_b", "b", "Conv", 16, 16, (2, 2), (1, 1), 16, (4, 4), (4, 4))
GRAPH = graph_of(WIDE, DEEP, nodes={"relu": "a", "pool": "b"})


def test_two_layers_in_one_node_share_it_by_their_work():
    node = Executed("both", "Convolution", ("conv_a/WithoutBiases", "conv_a", "relu", "conv_b"))
    assert (WIDE.macs, DEEP.macs) == (2048, 1024)
    shares = owners([node], GRAPH).shares["both"]
    assert shares == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    times, told = layer_times([[{"both": 9}, {"both": 9}]], owners([node], GRAPH), GRAPH)
    assert told == 1
    (run,) = times
    assert run["a"] == pytest.approx(2 * run["b"])


def test_nodes_of_no_name_go_with_what_they_read():
    executed = [
        Executed("x", "Input", ("x",)),
        Executed("to blocks", "Reorder", (), ("x",)),
        Executed("w", "Const", ("w",)),
        Executed("conv", "Convolution", ("conv_b_out", "pool"), ("to blocks", "w")),
        Executed("mystery", "Subgraph", ("Multiply_7",), ("w", "conv")),
        Executed("end", "Subgraph", ("conv_a_out", "pool"), ("mystery",)),
        Executed("from blocks", "Reorder", (), ("end",)),
    ]
    found = owners(executed, GRAPH)
    assert [next(iter(shares)) for shares in found.shares.values()] == ["a", "b", "b", "b", "b"]
    assert found.told == {"to blocks", "conv", "end", "from blocks"}


def test_unknown_nodes_lower_the_told_share(exported, capsys, monkeypatch):
    loads = [[{"a": 30, "b": 10}, {"a": 30, "b": 10}, {"a": 30, "b": 10}], [{"a": 30}]]
    found = Owners({"a": {"a": 1.0}}, frozenset("a"))
    times, told = layer_times(loads, found, GRAPH)
    assert [list(run) for run in times] == [["a", "b"]] * 2
    assert told == pytest.approx(0.75, abs=0.01)
    monkeypatch.setattr(OnnxGraph, "shares", lambda *_, **__: {})
    profiler = OpenVino().profiler(exported("Residual")[2], FP32)
    profiler.run(30)
    profiler.finish()
    assert "whose layer is known by name" in capsys.readouterr().err


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_single_runs_are_found_again_from_their_running_mean(took, unread):
    sums = np.cumsum(took)
    means = [int(total // count) for count, total in enumerate(sums, start=1)]
    shown = [
        None if hide and 0 < i < len(means) - 1 else mean
        for i, (mean, hide) in enumerate(zip(means, unread, strict=False))
    ]
    found = single_runs(shown)
    assert len(found) == len(took) - 1
    assert all(us >= -1e-9 for us in found)
    again = np.cumsum([took[0], *found])
    for count, mean in enumerate(shown, start=1):
        if mean is not None:
            assert count * mean - 1e-6 <= again[count - 1] <= count * mean + count - 1 + 1e-6


def test_single_runs_keep_a_steady_time_steady_and_a_hiccup_where_it_was():
    steady = single_runs([12] * 17)
    assert max(steady) - min(steady) < 1e-9
    took = [12] * 8 + [4000] + [12] * 8
    means = [int(total // count) for count, total in enumerate(np.cumsum(took), start=1)]
    found = single_runs(means)
    assert int(np.argmax(found)) == 7
    assert np.median(found) == pytest.approx(12, abs=2)
    assert single_runs([]) == []
