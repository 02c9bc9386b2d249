"""ONNX Runtime: outputs, timings, the layers of its kernels."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, cpu_isa
from prunekit.runtimes import onnxruntime as ort_runtime
from prunekit.runtimes import runtime_for
from prunekit.runtimes.fake import Fake
from prunekit.runtimes.onnx_graph import read
from prunekit.runtimes.onnxruntime import OnnxRuntime, layer_of_kernel, layer_times
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError
from support.engines import NETS, layers, of_module

ORT = Target("onnxruntime")


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
@pytest.mark.parametrize("runtime", [OnnxRuntime(), Fake()])
def test_damaged_file_is_named(exported, tmp_path, damage, runtime):
    _, artifact = exported("residual")
    whole = Path(artifact.path).read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 99}[damage]
    )
    target = Target(runtime.name)
    for use in (runtime.load, runtime.profiler):
        with pytest.raises(FileError, match=r"broken\.onnx"):
            use(Artifact.of_file(path), target)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_outputs_are_the_models(exported, net, runtime):
    module, artifact = exported(net)
    target = Target(runtime)
    engine = runtime_for(target).load(of_module(module) if runtime == "torch" else artifact, target)
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32), dtype=np.float32)
    (found,) = engine.run({"input": x})
    with torch.inference_mode():
        expected = module(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    engine.close()


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_timing_gives_a_positive_time_for_every_run(exported, runtime):
    module, artifact = exported("residual")
    target = Target(runtime, batch=2)
    engine = runtime_for(target).load(of_module(module) if runtime == "torch" else artifact, target)
    times = engine.time(5)
    assert len(times) == 5
    assert all(ms > 0 for ms in times)
    engine.close()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_profile_covers_every_layer(exported, net, runtime, tmp_path, monkeypatch):
    module, artifact = exported(net)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = Target(runtime)
    profiler = runtime_for(target).profiler(
        of_module(module) if runtime == "torch" else artifact, target
    )
    profiler.run(3)
    profiler.run(8)
    runs = profiler.finish()
    assert 10 <= len(runs) <= 11
    for run in runs:
        assert set(run) == layers(module)
    for layer in layers(module):
        assert sum(run[layer] for run in runs) > 0
    assert list(tmp_path.iterdir()) == []


def test_abandoned_profiler_leaves_no_files(exported, tmp_path, monkeypatch):
    _, artifact = exported("residual")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    profiler = OnnxRuntime().profiler(artifact, ORT)
    profiler.run(1)
    assert len(list(tmp_path.iterdir())) == 1
    del profiler
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="batches of"):
        OnnxRuntime().profiler(replace(artifact, input_shapes={"input": (2, 3, 32, 32)}), ORT)
    assert list(tmp_path.iterdir()) == []


def test_kernel_names_lead_to_layers(exported):
    _, artifact = exported("concats")
    graph = read(artifact.path)
    nodes = {node.op_type: node for node in onnx.load(artifact.path).graph.node}
    norm, gemm = nodes["BatchNormalization"], nodes["Gemm"]
    assert layer_of_kernel(f"{norm.output[0]}_bn_nchwc", graph) == "out"
    assert layer_of_kernel(f"{nodes['Concat'].output[0]}_nchwc", graph) == "out"
    assert layer_of_kernel(f"{gemm.name}_token_12", graph) == "fc"
    assert layer_of_kernel(f"{gemm.name}/GemmActivationFusion/", graph) == "fc"
    assert layer_of_kernel("ReorderOutput_token_3", graph) is None


def kernel(name, op, ts, dur):
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "args": {"op_name": op},
    }


def test_unknown_kernels_count_to_the_layer_before_within_their_run(exported):
    _, artifact = exported("concats")
    graph = read(artifact.path)
    gemm = next(n for n in onnx.load(artifact.path).graph.node if n.op_type == "Gemm")
    events = []
    for start in (0, 100):
        events += [
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 90},
            kernel("ReorderInput", "ReorderInput", start + 1, 1),
            kernel(gemm.name, "Gemm", start + 5, 20),
            kernel("mystery", "Fused", start + 30, 10 if start else 5),
        ]
    events.append(kernel("between", "Fused", 95, 1000))
    runs, named = layer_times(json.loads(json.dumps(events)), graph)
    assert runs == [{"stem": 1, "fc": 25}, {"stem": 1, "fc": 30}]
    assert named == pytest.approx(42 / 57)


def test_poorly_named_profile_is_said(exported, capsys, monkeypatch):
    _, artifact = exported("concats")
    monkeypatch.setattr(ort_runtime, "layer_of_kernel", lambda *_: None)
    profiler = OnnxRuntime().profiler(artifact, ORT)
    profiler.run(2)
    profiler.finish()
    assert "whose layer is known by name" in capsys.readouterr().err


def test_provider_missing_here_is_said_with_the_remedy():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeUnavailableError, match="no CUDAExecutionProvider; pip uninstall"):
        runtime_for(Target("onnxruntime", "cuda"))


def test_package_missing_here_is_said(monkeypatch):
    def missing():
        raise ImportError("no module of that name")

    monkeypatch.setattr(ort_runtime, "_ort", missing)
    assert "pip install onnxruntime" in OnnxRuntime().unavailable(ORT)


def test_cpu_environment_and_granularity_are_the_processors():
    for runtime in (OnnxRuntime(), Torch()):
        environment = runtime.environment(Target(runtime.name))
        assert environment.runtime_version.startswith(runtime.name)
        assert environment.device_name
        assert runtime.granularity(Target(runtime.name)) == (16 if "avx512f" in cpu_isa() else 8)


def test_inputs_that_do_not_fit_are_named(exported, tmp_path):
    module, artifact = exported("residual")
    engine = OnnxRuntime().load(artifact, ORT)
    with pytest.raises(UsageError, match=r"residual\.onnx does not run on input \[1, 4, 32, 32\]"):
        engine.run({"input": np.zeros((1, 4, 32, 32), np.float32)})
    live = Torch().load(of_module(module), Target("torch"))
    with pytest.raises(UsageError, match=r"live does not run on input \[1, 4, 32, 32\]"):
        live.run({"input": np.zeros((1, 4, 32, 32), np.float32)})
    with pytest.raises(UsageError, match="no input 'input'"):
        live.run({"x": np.zeros((1, 3, 32, 32), np.float32)})
    fixed = onnx.load(artifact.path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    for runtime in (OnnxRuntime(), Fake()):
        with pytest.raises(UsageError, match=r"batches of 1, not 4; time it with --batch 1"):
            runtime.load(Artifact.of_file(tmp_path / "fixed.onnx"), Target(runtime.name, batch=4))
    for axis in (0, 2):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
    onnx.save(fixed, tmp_path / "free.onnx")
    for runtime in (OnnxRuntime(), Fake()):
        with pytest.raises(UsageError, match="leaves more than its batch open"):
            runtime.load(Artifact.of_file(tmp_path / "free.onnx"), Target(runtime.name))
