"""Every operator that is rewritten for older runtimes computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.exporting.opset import lower_opset
from prunekit.support.errors import ModelError
from support.exported import relative, run


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False)
        self.both = nn.LayerNorm((4, 6))

    def forward(self, x):
        return self.both(self.two(self.one(x)) + x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


NETS = {
    "layer norms": Norm(),
    "attention": Attention(),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "split evenly": Lambda(lambda x: torch.cat([y * n for n, y in enumerate(x.chunk(3, -1))], -1)),
    "split unevenly": Lambda(lambda x: torch.cat(x.split([1, 2, 3], -1)[::-1], -1)),
    "sums": Lambda(lambda x: x.sum(1) + x.mean((1, 2), keepdim=True).squeeze(1) + x.amax(1)),
    "unsqueeze": Lambda(lambda x: (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1)),
    "softmax": nn.Softmax(dim=-1),
    "resize": Lambda(lambda x: F.interpolate(x.unsqueeze(1), scale_factor=2, mode="bilinear")),
    "resize to a size": Lambda(lambda x: F.interpolate(x.unsqueeze(1), size=(9, 7))),
    "reshape": Lambda(lambda x: x.reshape(x.shape[0], 2, -1, 3).transpose(1, 2)),
    "gelu": nn.GELU(),
    "pad": Lambda(lambda x: F.pad(x, (1, 2))),
}


@pytest.mark.parametrize("name", NETS)
def test_it_computes_the_same(name, tmp_path):
    torch.manual_seed(0)
    model, x = NETS[name].eval(), torch.randn(2, 4, 6)
    newest = pk.export(model, x, tmp_path / "m.onnx", opset=18)
    for opset in (17, 15, 13, 12, 11):
        proto = lower_opset(onnx.load(newest.path), opset)
        assert proto.opset_import[0].version == opset
        onnx.save(proto, tmp_path / "low.onnx")
        out = run(tmp_path / "low.onnx", input=np.concatenate([x, x + 1]))[1][0]
        expected = model(torch.cat([x, x + 1])).detach().numpy()
        assert relative(expected, out) < 1e-5, opset


def test_a_softmax_over_another_axis_has_no_older_form(tmp_path):
    newest = pk.export(nn.Softmax(dim=1), torch.randn(2, 4, 6), tmp_path / "m.onnx", opset=18)
    proto = onnx.load(newest.path)
    if all(node.op_type != "Transpose" for node in proto.graph.node):
        with pytest.raises(ModelError, match="cannot be written in opset 12: Softmax"):
            lower_opset(proto, 12)
