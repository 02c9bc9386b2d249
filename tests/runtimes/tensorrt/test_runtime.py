"""The runtime `tensorrt` on a double of TensorRT and CUDA: our flow, not theirs."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from prunekit.core.target import Target
from prunekit.runtimes import runtime_for
from prunekit.runtimes.onnx_graph import read
from prunekit.runtimes.tensorrt.runtime import TensorRt, TrtEngine
from prunekit.support.errors import UsageError
from support import tensorrt_double as double
from support.nets import image
from support.tensorrt import FP32, expected


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_at_any_batch(net, onnx, batch):
    engine = runtime_for(FP32).load(onnx, FP32)
    x = np.random.default_rng(batch).standard_normal((batch, *image().shape[1:]), np.float32)
    (found,) = engine.run({"input": x})
    np.testing.assert_allclose(found, expected(net, x), rtol=1e-4, atol=1e-4)
    engine.close()
    assert not double.state["memory"], "buffers are left on the device"
    assert sorted(set(double.state["log"]) & {"destroy stream", "destroy graph"}) == [
        "destroy graph",
        "destroy stream",
    ]
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run({"input": x})


def test_times_are_those_between_events_around_graph_replays(onnx):
    engine = TensorRt().load(onnx, FP32)
    double.state["log"].clear()
    assert engine.time(3) == [1.5] * 3
    assert double.state["log"] == ["launch"] * 3
    cold = TensorRt(cold=True).load(onnx, FP32)
    double.state["log"].clear()
    assert cold.time(2) == [1.5] * 2
    assert double.state["log"] == ["flush 2048", "launch"] * 2


def test_what_cannot_be_captured_is_enqueued(onnx, capsys):
    double.failing["capture"] = True
    engine = TensorRt().load(onnx, FP32)
    assert engine.time(2) == [1.5] * 2
    assert "launch" not in double.state["log"]
    assert "cannot be captured as a CUDA graph" in capsys.readouterr().err


def test_the_files_precision_is_the_targets(onnx, half):
    fp16 = replace(FP32, precision="fp16")
    with pytest.raises(UsageError, match=r"is in fp32, .* needs one in fp16"):
        TensorRt().load(onnx, fp16)
    with pytest.raises(UsageError, match=r"is in fp16, .* needs one in fp32"):
        TensorRt().load(half, FP32)
    TensorRt().load(half, fp16).close()


def test_layer_times_carry_the_layers_names(net, onnx):
    graph = read(onnx.path)
    names = list(graph.nodes)
    fused = f"{names[0]} + {names[1]}"
    double.failing["layers"] = [(fused, 0.25), *((name, 0.5) for name in names[2:])]
    profiler = TensorRt().profiler(onnx, FP32)
    profiler.run(3)
    runs = profiler.finish()
    assert len(runs) == 2
    assert set(runs[0]) == set(graph.layers)
    assert sum(runs[0].values()) == pytest.approx(250 + 500 * (len(names) - 2))


def test_why_it_is_unavailable(monkeypatch):
    assert "there is no GPU 3" in TensorRt().unavailable(Target("tensorrt", "cuda:3"))
    double.failing["driver"] = 35
    assert "CUDA finds no usable GPU (error 35)" in TensorRt().unavailable(FP32)
    double.failing.clear()
    monkeypatch.setattr(double, "__version__", "8.6.1")
    assert "TensorRT 8.6.1 is too old" in TensorRt().unavailable(FP32)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(double, "__version__", "11.0.0")
    assert "pip install cuda-bindings" in TensorRt().unavailable(FP32)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "`import tensorrt` failed" in TensorRt().unavailable(FP32)


def test_the_engine_class_is_an_engine(onnx):
    assert isinstance(TensorRt().load(onnx, FP32), TrtEngine)
