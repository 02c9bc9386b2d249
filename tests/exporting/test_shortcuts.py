"""The exporter's shortcuts lead to the file that it writes without them."""

from __future__ import annotations

import contextlib
import importlib
from types import SimpleNamespace

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.exporting import onnx as exporting
from prunekit.exporting.shortcuts import out_of_place_, shortcuts
from support.exported import relative, run
from support.nets import Plain, conv, image, randomise


def test_exports_share_the_translations_of_operators(tmp_path, monkeypatch):
    library = importlib.import_module("torch.onnx._internal.exporter._registration").onnxscript_apis
    gathered, gather = [], library.get_torchlib_ops

    def counted():
        gathered.append(1)
        return gather()

    monkeypatch.setattr(library, "get_torchlib_ops", counted)
    for name in ("one", "two"):
        pk.export(Plain().eval(), image(), tmp_path / f"{name}.onnx")
    assert library.get_torchlib_ops is counted
    assert len(gathered) == 1
    monkeypatch.delattr(library, "get_torchlib_ops")
    monkeypatch.setattr(library, "_module", SimpleNamespace())  # a PyTorch that has it elsewhere
    with shortcuts():
        assert not hasattr(library, "get_torchlib_ops")


class InPlace(nn.Module):
    """Activations that write over what nothing else reads."""

    def __init__(self):
        super().__init__()
        self.c1, self.norm, self.c2 = conv(3, 8), nn.BatchNorm2d(8), conv(8, 4)
        self.relu6, self.silu = nn.ReLU6(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.silu(self.c2(self.relu6(self.norm(self.c1(x)))) + 1)


class ReadAgain(nn.Module):
    """What is written over is read after it, under another name."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.c1, self.drop = conv(3, 8), nn.Dropout()

    def forward(self, x):
        x = self.c1(x)
        other = {"itself": x, "view": x.flatten(1).view_as(x), "dropout": self.drop(x)}[self.way]
        return F.relu_(other) * 2 + x


def captured(model):
    return torch.export.export(model, (image(),), strict=False).graph_module


def test_activations_in_place_are_replaced_where_nothing_else_reads_their_input():
    assert out_of_place_(captured(InPlace().eval())) == 2


@pytest.mark.parametrize("way", ["itself", "view", "dropout"])
def test_what_is_read_again_is_as_it_would_be(tmp_path, way):
    model = randomise(ReadAgain(way)).eval()
    assert out_of_place_(captured(model)) == 0
    artifact = pk.export(model, image(), tmp_path / "m.onnx")
    with torch.no_grad():
        assert (
            relative(model(image()).numpy(), run(artifact.path, input=image().numpy())[1][0]) < 1e-5
        )


@pytest.mark.parametrize("make", [InPlace, zoo.resnet8, zoo.mobilenet_v1], ids=lambda m: m.__name__)
def test_the_file_has_the_same_operators_and_weights(tmp_path, monkeypatch, make):
    model = make().eval()
    pk.export(model, image(), tmp_path / "quick.onnx")
    monkeypatch.setattr(exporting, "shortcuts", contextlib.nullcontext)
    pk.export(model, image(), tmp_path / "slow.onnx")
    quick, slow = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("quick", "slow"))
    assert [n.op_type for n in quick.node] == [n.op_type for n in slow.node]
    weights = [{t.name: t.SerializeToString() for t in g.initializer} for g in (quick, slow)]
    assert weights[0] == weights[1]
