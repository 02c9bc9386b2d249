"""Files in fp16: what stays in fp32, and what overflows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import prunekit as pk
from prunekit.exporting.half import LARGEST, peaks_of, to_half
from prunekit.runtimes.onnx_graph import precision_of, read
from support.nets import Concat, Depthwise, Residual, SqueezeExcite, Tokens, image, randomise
from support.precisions import batches

NETS = {net.__name__: net for net in (Concat, Depthwise, Residual, SqueezeExcite, Tokens)}


class Loud(nn.Module):
    """A layer whose values fp16 cannot hold, and one whose weights it cannot."""

    def __init__(self):
        super().__init__()
        self.quiet, self.loud, self.heavy = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        nn.init.constant_(self.loud.weight, 3e4)
        nn.init.constant_(self.heavy.weight, 2 * LARGEST)

    def forward(self, x):
        x = torch.relu(self.quiet(x))
        x = self.loud(x) / 3e4
        return self.heavy(x) / LARGEST


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(x)
        return self.out(torch.softmax(x @ x.transpose(1, 2), -1) @ x)


def kinds(path):
    """The type that every node computes in, by its first floating input."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [(n.op_type, known.get(n.input[0])) for n in graph.node if n.op_type != "Cast"]


@pytest.mark.parametrize("name", NETS)
def test_fp16_has_16_bits_and_the_models_outputs(name, tmp_path):
    net = randomise(NETS[name]())
    example = torch.randn(1, 5, 6) if name == "Tokens" else image()
    made = pk.export(net, example, tmp_path / "half.onnx", precision="fp16")
    assert 0 < made.apart < 0.02
    model = onnx.load(made.path)
    assert precision_of(model) == "fp16"
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}
    exact = pk.export(net, example, tmp_path / "exact.onnx")
    assert Path(made.path).stat().st_size < Path(exact.path).stat().st_size
    assert read(made.path).layers == read(exact.path).layers, "layers keep their names"
    assert any(kind == TensorProto.FLOAT16 for op, kind in kinds(made.path))


def test_softmax_and_norms_stay_in_fp32(tmp_path):
    made = pk.export(Attention().eval(), torch.randn(1, 4, 8), tmp_path / "a.onnx", "fp16")
    for op, kind in kinds(made.path):
        wanted = op in ("Softmax", "LayerNormalization")
        assert (kind == TensorProto.FLOAT) == wanted or kind == TensorProto.INT64, (op, kind)


def test_what_overflows_stays_in_fp32(tmp_path):
    net = Loud().eval()
    made = pk.export(net, image(), tmp_path / "loud.onnx", precision="fp16")
    convs = [kind for op, kind in kinds(made.path) if op == "Conv"]
    assert convs == [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT]
    exact = pk.export(net, image(), tmp_path / "exact.onnx")
    naive = tmp_path / "naive.onnx"
    onnx.save(to_half(onnx.load(exact.path), {}), naive)  # nothing known of its values
    convs = [kind for op, kind in kinds(naive) if op == "Conv"]
    assert convs == [TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT]


def test_a_weight_that_both_types_read_is_there_twice(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))

        def forward(self, x):
            return torch.softmax(x, -1) ** self.scale + x * self.scale

    made = pk.export(Tied().eval(), torch.rand(1, 4, 8), tmp_path / "tied.onnx", "fp16")
    types = {t.name: t.data_type for t in onnx.load(made.path).graph.initializer}
    assert Counter(types.values())[TensorProto.FLOAT16] >= 1
    assert Counter(types.values())[TensorProto.FLOAT] >= 1


def test_peaks_are_the_largest_values_seen(tmp_path):
    made = pk.export(Loud().eval(), image(), tmp_path / "loud.onnx")
    given = batches(image().shape[1:])
    peaks = peaks_of(made.path, given)
    assert peaks["input"] == pytest.approx(max(abs(b["input"]).max() for b in given))
    assert max(peaks.values()) > LARGEST
