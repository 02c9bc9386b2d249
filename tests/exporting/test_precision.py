"""Whom a file's precision is for, and what accuracy is said in it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.utils.data import TensorDataset

import prunekit as pk
from prunekit.core import target as target_module
from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.exporting.int8 import Quantiser, quantise
from prunekit.pipeline.accuracy import file_accuracy
from prunekit.train import Data
from support.nets import Residual, image, randomise
from support.precisions import batches


@pytest.mark.parametrize(
    ("flags", "bits"),
    [(("avx2",), 7), (("avx2", "avx512_vnni"), 8), (("avx2", "avx_vnni"), 8), (("asimd",), 8)],
)
def test_whom_an_int8_file_is_for(flags, bits, monkeypatch, tmp_path):
    monkeypatch.setattr(target_module, "_cpuinfo", lambda: {"flags": " ".join(flags)})
    assert Quantiser.for_runtime("tensorrt") == Quantiser(symmetric=True, whole_bias=False)
    wanted = Quantiser(symmetric=False, whole_bias=True, short_weights=bits == 7)
    assert Quantiser.for_runtime("onnxruntime") == wanted
    source = pk.export(randomise(Residual()), image(), tmp_path / "exact.onnx").path
    quantise(source, tmp_path / "m.onnx", batches(image().shape[1:]), wanted)
    values = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer]
    weights = [v for v in values if v.dtype == np.int8 and v.ndim > 1]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 2 ** (bits - 1) - (bits == 8)


def test_accuracy_of_a_live_module_is_in_the_targets_precision():
    """Of a network that bf16 makes wrong: it tells apart what differs in the last bits of fp32."""

    class LastBits(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return torch.stack([x[:, 0] * 0, (x[:, 0] + 256.0) - 256.0], 1)

    images = torch.full((8, 1, 2, 2), 0.25)  # a sixteenth of a bf16 step at 256
    labels = torch.ones(8, dtype=torch.long)
    both = TensorDataset(images, labels)
    data = Data(both, both, 2, (1, 2, 2), "made")
    live = live_artifact(LastBits().eval(), images[:1])
    assert file_accuracy(live, data, target=Target("torch")) == 1.0
    assert file_accuracy(live, data, target=Target("torch", precision="bf16")) == 0.0
