"""The runtime `openvino`: outputs, precision, threads, and the layers of what it executes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from core_nets import (
    Concat,
    Depthwise,
    Flatten,
    PreActivation,
    Residual,
    Slopes,
    SqueezeExcite,
    Tokens,
    image,
    randomise,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, usable_cores
from prunekit.exporting import export_openvino
from prunekit.runtimes import runtime_for
from prunekit.runtimes.onnx_graph import Anchor, OnnxGraph, read
from prunekit.runtimes.openvino import runtime as ov_runtime
from prunekit.runtimes.openvino.nodes import Executed, Owners, layer_times, owners, single_runs
from prunekit.runtimes.openvino.runtime import OpenVino, OvEngine
from prunekit.support.errors import FileError, ModelError, RuntimeUnavailableError, UsageError

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")

FP32, BF16 = Target("openvino"), Target("openvino", precision="bf16")
BF16_TOLERANCE = 0.03
"""Of the largest output; bf16 keeps eight bits, and rounds between all layers."""


class Grouped(nn.Module):
    """Transposed and grouped convolutions, pooling, softmax, a layer called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.fc = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = self.grouped(torch.relu(self.twice(torch.relu(self.twice(x)))))
        return self.fc(nn.functional.avg_pool2d(self.up(x), 8).flatten(1)).softmax(1)


NETS = {
    net.__name__: net
    for net in (
        *(Concat, Depthwise, Flatten, Grouped, PreActivation, Residual, Slopes),
        *(SqueezeExcite, Tokens),
    )
}
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> (module, example, artifact), each made once."""
    folder = tmp_path_factory.mktemp("openvino")
    made = {}

    def make(name):
        if name not in made:
            module = randomise(NETS[name]())
            example = torch.randn(1, 5, 6) if name == "Tokens" else image()
            made[name] = module, example, pk.export(module, example, folder / f"{name}.onnx")
        return made[name]

    return make


def layers(module):
    return {name for name, layer in module.named_modules() if isinstance(layer, WEIGHTED)}


def relative(expected, found):
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def needs_bf16():
    if reason := OpenVino().unavailable(BF16):
        pytest.skip(reason)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("target", "tolerance"), [(FP32, 1e-4), (BF16, BF16_TOLERANCE)])
def test_outputs_are_the_models_at_any_batch(exported, net, target, tolerance):
    if target.precision == "bf16":
        needs_bf16()
    module, example, artifact = exported(net)
    engine = runtime_for(target).load(artifact, target)
    for batch in (3, 1, 3):
        x = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
        (found,) = engine.run({"input": x.numpy()})
        with torch.no_grad():
            assert relative(module(x).numpy(), found) < tolerance
        assert found.dtype == np.float32
    engine.close()


def test_a_precision_is_that_and_no_other(exported):
    needs_bf16()
    module, _, artifact = exported("Residual")
    x = image(2)
    with torch.no_grad():
        expected = module(x).numpy()
    apart = {}
    for target in (FP32, BF16):
        engine = OvEngine(artifact, target)
        used = engine.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        assert used == {"fp32": "f32", "bf16": "bf16"}[target.precision]
        apart[target.precision] = relative(expected, engine.run({"input": x.numpy()})[0])
        engine.close()
    assert apart["fp32"] < 1e-5 < 1e-4 < apart["bf16"]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_targets(exported, threads):
    if threads > usable_cores():
        pytest.skip(f"{usable_cores()} usable cores")
    engine = OvEngine(exported("Residual")[2], replace(FP32, threads=threads))
    assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert engine.compiled.get_property("NUM_STREAMS") == 1
    assert engine.compiled.get_property("ENABLE_CPU_PINNING") is False
    engine.close()


def test_more_threads_than_openvino_runs_are_refused(exported):
    with pytest.raises(UsageError, match=r"runs at most \d+ threads here, not 4096; use --threads"):
        OpenVino().load(exported("Residual")[2], replace(FP32, threads=4096))


def test_timing_leaves_the_bound_inputs_alone(exported):
    _, _, artifact = exported("Residual")
    engine = OpenVino().load(artifact, replace(FP32, batch=2))
    held = engine._held[0].data.copy()
    engine.run({"input": np.zeros((2, 3, 8, 8), np.float32)})
    times = engine.time(4)
    assert len(times) == 4
    assert all(ms > 0 for ms in times)
    assert held.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(held, engine._held[0].data)
    engine.close()


def test_a_closed_engine_says_so(exported):
    engine = OpenVino().load(exported("Residual")[2], FP32)
    engine.close()
    engine.close()
    for use in (lambda: engine.time(1), lambda: engine.run({}), engine.counters, engine.renew):
        with pytest.raises(UsageError, match=r"Residual\.onnx: the engine is closed"):
            use()


@pytest.mark.parametrize("net", NETS)
def test_profile_covers_every_layer(exported, net):
    module, _, artifact = exported(net)
    profiler = OpenVino().profiler(artifact, FP32)
    for _ in range(40):
        profiler.run(1)
    found = profiler.finish()
    assert len(found) == 39
    for run in found:
        assert set(run) == layers(module)
        assert all(us >= 0 for us in run.values())
    for layer in layers(module):
        assert sum(run[layer] for run in found) > 0


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


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "missing"])
def test_damaged_file_is_named(exported, tmp_path, damage):
    _, _, artifact = exported("Residual")
    whole, path = Path(artifact.path).read_bytes(), tmp_path / "broken.onnx"
    cut = {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 99}
    path.write_bytes(cut.get(damage, b""))
    broken = Artifact.of_file(path)
    if damage == "missing":
        path.unlink()
    for use in (OpenVino().load, OpenVino().profiler):
        with pytest.raises(FileError, match=r"broken\.onnx") as caught:
            use(broken, FP32)
        assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_are_named(exported, tmp_path):
    _, _, artifact = exported("Residual")
    engine = OpenVino().load(artifact, FP32)
    with pytest.raises(UsageError, match=r"Residual\.onnx does not run on input \[1, 4, 8, 8\]"):
        engine.run({"input": np.zeros((1, 4, 8, 8), np.float32)})
    with pytest.raises(UsageError, match=r"Residual\.onnx takes the inputs input, not x"):
        engine.run({"x": np.zeros((1, 3, 8, 8), np.float32)})
    engine.close()
    fixed = onnx.load(artifact.path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match=r"batches of 1, not 4; time it with --batch 1"):
        OpenVino().load(Artifact.of_file(tmp_path / "fixed.onnx"), replace(FP32, batch=4))
    for axis in (0, 2):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
    onnx.save(fixed, tmp_path / "free.onnx")
    with pytest.raises(UsageError, match="leaves more than its batch open"):
        OpenVino().load(Artifact.of_file(tmp_path / "free.onnx"), FP32)


def test_whole_number_inputs_are_bound_as_zeros(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, words):
            return self.fc(self.table(words).mean(1))

    words = torch.arange(6).reshape(1, 6)
    artifact = pk.export(randomise(Words()), {"words": words}, tmp_path / "words.onnx")
    engine = OpenVino().load(artifact, FP32)
    assert engine._held[0].data.dtype == np.int64
    assert not engine._held[0].data.any()
    assert len(engine.time(2)) == 2
    engine.close()


def test_package_missing_here_is_said(monkeypatch):
    def missing():
        raise ImportError("no module of that name")

    monkeypatch.setattr(ov_runtime, "_core", missing)
    assert "no module of that name; pip install openvino" in OpenVino().unavailable(FP32)


@pytest.mark.parametrize(
    ("devices", "reason"),
    [(["CPU"], "computes in FP32, INT8 on this processor, not in BF16"), ([], "no CPU plugin")],
)
def test_processor_without_bf16_is_refused(monkeypatch, devices, reason):
    class Core:
        available_devices = devices

        def get_property(self, *_):
            return ["FP32", "INT8"]

    monkeypatch.setattr(ov_runtime, "_core", Core)
    with pytest.raises(RuntimeUnavailableError, match=rf"openvino:cpu:bf16.*{reason}"):
        runtime_for(BF16)
    if devices:
        assert runtime_for(FP32).name == "openvino"


def test_another_precision_than_asked_for_is_not_timed(exported, monkeypatch):
    monkeypatch.setitem(ov_runtime._PRECISIONS, "bf16", "f32")
    engine = OvEngine(exported("Residual")[2], FP32)
    monkeypatch.setitem(ov_runtime._PRECISIONS, "fp32", "bf16")
    with pytest.raises(RuntimeUnavailableError, match="computes in f32 instead"):
        ov_runtime._check(engine.compiled, FP32)
    engine.close()


def test_unknown_precisions_and_devices_are_refused():
    with pytest.raises(RuntimeUnavailableError, match="has precision fp32, bf16 here, not fp16"):
        runtime_for(Target.parse("openvino:cpu:fp16"))
    with pytest.raises(RuntimeUnavailableError, match="'openvino' runs on cpu, not cuda"):
        runtime_for(Target.parse("openvino:cuda"))


def test_environment_has_the_version_and_the_build():
    environment = OpenVino().environment(FP32)
    name, version = environment.runtime_version.split()
    assert name == "openvino"
    assert environment.packages["openvino"].startswith(version)
    assert environment.device_name
    assert OpenVino().granularity(FP32) in (8, 16)


def test_a_run_from_profile_to_report(home, prunekit):
    on = ("--input", "1x1x8x8", "--target", "openvino:cpu")
    nets = ("--nets", "4", "--rounds", "2", "--granularity", "16", "-o", "ov.json")
    status, _, err = prunekit("profile", "net.py:medium", *on, *nets)
    assert status == 0, err
    data = ("--data", "digits", "--epochs", "0", "--from-scratch", "--method", "oneshot")
    target = ("--table", "ov.json", "--target-latency", "70%", "--measure-seconds", "0.3")
    status, _, err = prunekit("prune", "net.py:medium", *on, *data, *target, "-o", "ov")
    assert status in (0, 1), err
    report = json.loads((home / "ov" / "report.json").read_text())
    assert report["target"]["runtime"] == "openvino"
    assert report["environment"]["runtime_version"].startswith("openvino ")
    status, out, err = prunekit(
        *("bench", "ov/dense.onnx", "ov", "--target", "openvino:cpu", "--json"),
        *("--max-seconds", "0.5"),
    )
    assert status == 0, err
    assert [row["samples"] > 0 for row in json.loads(out)["artifacts"]] == [True, True]


def test_accuracy_is_that_of_the_precision_deployed(home):
    needs_bf16()
    from prunekit.pipeline.accuracy import file_accuracy
    from prunekit.train import load_data

    data = load_data("digits", (1, 8, 8))
    found = file_accuracy(home / "run" / "model.onnx", data, target=BF16)
    assert found == pytest.approx(file_accuracy(home / "run" / "model.onnx", data), abs=0.05)


def test_ir_is_written_whole_and_gives_the_models_outputs(exported, tmp_path):
    module, example, _ = exported("Residual")
    artifact = export_openvino(module, example, tmp_path / "m.xml")
    assert artifact.format == "openvino"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    engine = OpenVino().load(artifact, FP32)
    x = image(3)
    with torch.no_grad():
        assert relative(module(x).numpy(), engine.run({"input": x.numpy()})[0]) < 1e-5
    engine.close()
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(FileError, match=r"m\.xml is not a model OpenVINO can load"):
        OpenVino().load(Artifact.of_file(tmp_path / "m.xml"), FP32)
    with pytest.raises(UsageError, match=r"two files, FILE\.xml and FILE\.bin"):
        export_openvino(module, example, tmp_path / "m.onnx")


def test_ir_that_cannot_be_trusted_replaces_nothing(exported, tmp_path, monkeypatch):
    module, example, _ = exported("Residual")
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("before")
    other = randomise(Residual(), seed=1)
    whole = pk.export(other, example, tmp_path / "other.onnx").path
    write = ov_runtime.write_ir
    monkeypatch.setattr(ov_runtime, "write_ir", lambda _, path: write(whole, path))
    with pytest.raises(ModelError, match="the exported OpenVINO IR differs from Residual by"):
        export_openvino(module, example, tmp_path / "m.xml")
    assert [(tmp_path / name).read_text() for name in ("m.xml", "m.bin")] == ["before"] * 2


def test_ir_on_the_command_line(home, prunekit):
    export = ("export", "run", "--model", "net.py:tiny", "--format", "openvino")
    status, out, err = prunekit(*export, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["path"], told["format"]) == (str(Path("run", "model.xml")), "openvino")
    assert told["accuracy"] is not None, "measured on the run's data"
    status, _, err = prunekit(*export)
    assert status == 2
    assert "model.xml exists; use --overwrite" in err
    status, _, err = prunekit(*export, "-o", "new.bin")
    assert status == 2
    on = ("--target", "openvino:cpu", "--max-seconds", "0.3")
    status, _, err = prunekit("bench", "run/model.onnx", "run/model.xml", *on)
    assert status == 0, err
    status, _, err = prunekit("bench", "run/model.xml", "--max-seconds", "0.3")
    assert status == 2
    assert "onnxruntime:cpu takes artifacts of format onnx, not openvino" in err
