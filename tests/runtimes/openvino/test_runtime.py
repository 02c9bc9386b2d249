"""The runtime `openvino`: outputs, precision, threads, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, usable_cores
from prunekit.runtimes import runtime_for
from prunekit.runtimes.openvino import runtime as ov_runtime
from prunekit.runtimes.openvino.runtime import OpenVino, OvEngine
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError
from support.nets import (
    image,
    randomise,
)
from support.openvino import BF16, FP32, NETS, layers, needs_bf16, relative

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")


BF16_TOLERANCE = 0.03
"""Of the largest output; bf16 keeps eight bits, and rounds between all layers."""


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
    bound = engine._tensors[0].data.copy()
    engine.run({"input": np.zeros((2, 3, 8, 8), np.float32)})
    times = engine.time(4)
    assert len(times) == 4
    assert all(ms > 0 for ms in times)
    assert bound.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(bound, engine._tensors[0].data)
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
    assert engine._tensors[0].data.dtype == np.int64
    assert not engine._tensors[0].data.any()
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
