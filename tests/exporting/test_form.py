"""Files for other compilers: older operators, fixed and free sizes, and what cannot be had."""

from __future__ import annotations

import tempfile

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.exporting.form import rebatched
from prunekit.support import progress
from prunekit.support.errors import ModelError, UsageError
from support.exported import relative, run
from support.nets import Plain, Residual, image, randomise


@pytest.fixture(autouse=True)
def _normal_verbosity(monkeypatch):
    monkeypatch.setattr(progress.verbosity, "level", 0)


class Pair(nn.Module):
    """Joins its two images along the batch, which an exporter takes for a constant."""

    def __init__(self):
        super().__init__()
        self.enc, self.out = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, image1, image2):
        a, b = torch.chunk(self.enc(torch.cat([image1, image2], 0)), 2, 0)
        return self.out(torch.cat([a, b], 1))


def sizes(path):
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_a_file_has_the_operators_that_are_asked_for(tmp_path, opset):
    model = randomise(Residual()).eval()
    artifact = pk.export(model, image(), tmp_path / "m.onnx", opset=opset)
    proto = onnx.load(artifact.path)
    assert [e.version for e in proto.opset_import if e.domain == ""] == [opset]
    assert proto.ir_version == onnx.helper.find_min_ir_version_for(proto.opset_import)
    out = run(artifact.path, input=image(3).numpy())[1][0]
    assert relative(model(image(3)).detach().numpy(), out) < 1e-5


def test_the_format_itself_may_be_older_and_newer(tmp_path):
    for opset, version in ((17, 9), (None, 10)):
        path = tmp_path / f"{version}.onnx"
        pk.export(randomise(Plain()), image(), path, opset=opset, ir_version=version)
        assert onnx.load(path).ir_version == version


def test_a_fixed_batch_is_the_examples(tmp_path):
    model = randomise(Plain()).eval()
    artifact = pk.export(model, image(3), tmp_path / "m.onnx", dynamic=())
    assert artifact.input_shapes == {"input": (3, 3, 8, 8)}
    assert sizes(artifact.path) == {"input": [3, 3, 8, 8]}
    low = pk.export(model, image(2), tmp_path / "h.onnx", "fp16", dynamic=(), opset=13)
    assert sizes(low.path) == {"input": [2, 3, 8, 8]}


def test_height_and_width_stay_free_where_the_network_takes_any(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = randomise(Residual()).eval()
    free = ("batch", "height", "width")
    artifact = pk.export(model, image(), tmp_path / "m.onnx", dynamic=free)
    assert sizes(artifact.path) == {"input": ["batch", 3, "height", "width"]}
    given = torch.randn(2, 3, 12, 20)
    out = run(artifact.path, input=given.numpy())[1][0]
    assert relative(model(given).detach().numpy(), out) < 1e-5
    pk.export(model, image(), tmp_path / "m.onnx", dynamic=("height", "3"), opset=12)
    assert sizes(tmp_path / "m.onnx") == {"input": [1, 3, "height", "axis3"]}

    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    with pytest.raises(ModelError):
        pk.export(flat, image(), tmp_path / "n.onnx", dynamic=("batch", "height"))
    assert not (tmp_path / "n.onnx").exists()


def test_a_batch_that_cannot_stay_free_is_fixed_and_said(tmp_path, capsys):
    model, images = randomise(Pair()).eval(), (image(), image() + 1)
    artifact = pk.export(model, images, tmp_path / "m.onnx")
    assert sizes(artifact.path) == {"image1": [1, 3, 8, 8], "image2": [1, 3, 8, 8]}
    assert artifact.input_shapes == {"image1": (1, 3, 8, 8), "image2": (1, 3, 8, 8)}
    assert capsys.readouterr().err.startswith(
        "note: the batch of Pair cannot stay free in ONNX: the file takes batches of 1 ("
    )
    named = {name: value.numpy() for name, value in zip(sizes(artifact.path), images, strict=True)}
    out = run(artifact.path, **named)[1][0]
    assert relative(model(*images).detach().numpy(), out) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opset": 9}, "opset 9: files are written in opset 11 to "),
        ({"opset": 99}, "opset 99: files are written in opset 11 to "),
        ({"opset": 17, "ir_version": 5}, "IR version 5: files of opset 17 are written in 8 to "),
        ({"dynamic": ("colour",)}, "dynamic size 'colour' is not known; write batch, depth, "),
        ({"dynamic": ("depth",)}, "no input has a dynamic size 'depth'; inputs are 1x3x8x8"),
        ({"tolerance": 2.0}, "tolerance 2 must be above 0 and at most 1"),
        ({"max_seconds": 0.0}, "max_seconds 0 must be above 0"),
    ],
)
def test_forms_that_no_file_has_are_refused(tmp_path, settings, message):
    with pytest.raises(UsageError) as caught:
        pk.export(Plain().eval(), image(), tmp_path / "m.onnx", **settings)
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_an_operator_without_an_older_form_is_named(tmp_path):
    class Samples(nn.Module):
        def forward(self, x):
            grid = x.new_zeros(len(x), 4, 4, 2)
            return F.grid_sample(x, grid, align_corners=False)

    with pytest.raises(ModelError, match=r"cannot be written in opset 12: GridSample \(.*\) has"):
        pk.export(Samples(), image(), tmp_path / "m.onnx", opset=12)
    pk.export(Samples(), image(), tmp_path / "m.onnx", opset=16)


def test_an_export_that_takes_too_long_is_given_up(tmp_path):
    with pytest.raises(ModelError, match=r"the export of Plain took more than 0\.01 s; give it"):
        pk.export(Plain().eval(), image(), tmp_path / "m.onnx", max_seconds=0.01)
    assert not list(tmp_path.iterdir())


def test_batches_are_cut_to_the_size_that_a_file_takes():
    batch = {"input": torch.arange(10.0).reshape(5, 2).numpy()}
    rows = [part["input"].tolist() for part in rebatched([batch], 2)]
    assert rows == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
