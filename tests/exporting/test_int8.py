"""Files in int8: quantisers scaled to the data, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import prunekit as pk
from prunekit.runtimes.onnx_graph import precision_of, read
from prunekit.support.errors import ModelError, UsageError
from support.nets import Residual, image, randomise
from support.precisions import batches


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_has_quantisers_scaled_to_the_data(runtime, tmp_path):
    net, shape = randomise(Residual()), image().shape[1:]
    path = tmp_path / "int8.onnx"
    made = pk.export(net, image(), path, "int8", batches=batches(shape), runtime=runtime)
    assert 0 < made.apart < 0.3
    model = onnx.load(path)
    assert precision_of(model) == "int8"
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [t for name, t in tensors.items() if name.endswith("weight_quantized")]
    assert weights
    assert all(w.dtype == np.int8 for w in weights)
    scales = [t for name, t in tensors.items() if name.endswith("weight_scale")]
    assert all(s.size > 1 for s in scales), "one scale for every output channel"
    zeros = [t for name, t in tensors.items() if name.endswith("_zero_point")]
    only_zero = all(not np.any(zero) for zero in zeros)
    assert only_zero == (runtime == "tensorrt"), "TensorRT takes ranges around zero only"
    whole = any(t.dtype == np.int32 for t in tensors.values())
    assert whole == (runtime == "onnxruntime"), "TensorRT takes biases in fp32"
    assert set(read(path).layers) == set(
        read(pk.export(net, image(), tmp_path / "e.onnx").path).layers
    )
    loud = [{"input": 100 * batch["input"]} for batch in batches(shape)]
    again = pk.export(net, image(), tmp_path / "loud.onnx", "int8", batches=loud, runtime=runtime)
    scale = {
        n: float(numpy_helper.to_array(t))
        for n, t in ((t.name, t) for t in onnx.load(again.path).graph.initializer)
        if n == "input_scale"
    }
    assert scale["input_scale"] == pytest.approx(100 * float(tensors["input_scale"]), rel=0.01)


def test_int8_without_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="int8 needs data for its ranges; add --data"):
        pk.export(Residual().eval(), image(), tmp_path / "m.onnx", "int8")
    assert not list(tmp_path.iterdir())


def test_int8_that_spoils_the_outputs_is_refused(tmp_path):
    far = [{"input": 1e4 * batch["input"]} for batch in batches(image().shape[1:])]
    near = batches(image().shape[1:], 1)
    with pytest.raises(ModelError, match=r"differs from Residual by .* \(allowed: 3e-01\)"):
        pk.export(randomise(Residual()), image(), tmp_path / "m.onnx", "int8", batches=near + far)
    assert not list(tmp_path.iterdir())
