"""Exports equal PyTorch or do not exist."""

from __future__ import annotations

import tempfile

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

import prunekit as pk
from prunekit.exporting import live_artifact
from prunekit.exporting import onnx as exporting
from prunekit.support.errors import FileError, ModelError, UsageError
from support.exported import relative, run
from support.nets import (
    Plain,
    Residual,
    conv,
    image,
    randomise,
)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv(3, 4), conv(2, 4), nn.Linear(4, 3)

    def forward(self, left, right):
        x = F.relu(self.a(left) + self.b(right))
        return {"logits": self.fc(x.mean((2, 3))), "features": x}


@pytest.mark.parametrize("batch", [1, 3])
def test_an_export_gives_what_torch_gives(tmp_path, batch):
    model = randomise(Residual()).train()
    artifact = pk.export(model, image(batch), tmp_path / "m.onnx")
    assert model.training
    assert artifact.format == "onnx"
    assert artifact.input_shapes == {"input": (-1, 3, 8, 8)}
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    for size in (1, 2, 5):
        _, (found,) = run(artifact.path, input=image(size).numpy())
        with torch.no_grad():
            assert relative(model.eval()(image(size)).numpy(), found) < 1e-5


def test_several_inputs_and_outputs(tmp_path):
    model = randomise(TwoInputs())
    example = {"left": image(), "right": image()[:, :2]}
    expected = [t.detach().numpy() for t in model(**example).values()]
    given = {name: value.numpy() for name, value in example.items()}
    by_name = pk.export(model, example, tmp_path / "a.onnx")
    in_order = pk.export(model, tuple(example.values()), tmp_path / "b.onnx")
    assert list(by_name.input_shapes) == ["left", "right"]
    assert list(in_order.input_shapes) == ["left", "right"]
    for artifact in (by_name, in_order):
        found = run(artifact.path, **given)[1]
        assert all(relative(e, f) < 1e-5 for e, f in zip(expected, found, strict=True))


class Flagged(Plain):
    def forward(self, x, scale=1.0, shift=None, *, twice=False):
        out = super().forward(x) * scale
        out = out if shift is None else out + shift
        return (out, -out) if twice else out


def test_inputs_that_are_no_tensors_are_part_of_what_is_exported(tmp_path):
    model, x, shift = randomise(Flagged()), image(), torch.ones(1, 4)
    path = tmp_path / "m.onnx"
    for example, tensors in (
        ({"x": x, "scale": 3.0}, {"x"}),
        ({"shift": shift, "twice": True, "x": x, "scale": 2.0}, {"shift", "x"}),
        ((x, 0.5), {"x"}),
        ((x, 0.5, shift), {"x", "shift"}),
        ((x, 1.0, None), {"x"}),
    ):
        given = example
        if isinstance(example, tuple):
            given = dict(zip(("x", "scale", "shift"), example, strict=False))
        expected = model(**given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        artifact = pk.export(model, example, path)
        assert artifact.input_shapes.keys() == tensors
        found = run(path, **{name: given[name].numpy() for name in tensors})[1]
        assert len(found) == len(expected)
        for e, f in zip(expected, found, strict=True):
            assert relative(e.detach().numpy(), f) < 1e-5
        live = live_artifact(model, example)
        out = live.module(*(given[name] for name in live.input_shapes))
        assert torch.equal(out[0] if len(expected) > 1 else out, expected[0])


def test_examples_that_cannot_be_inputs_are_named(tmp_path):
    model, x, path = Flagged(), image(), tmp_path / "m.onnx"
    for example, text in (
        ([x], "`example` must be a tensor, a tuple or a dict of inputs, not list"),
        ({"x": x, "shift": [x]}, "input shift of Flagged holds several; give tensors by themselv"),
        ((x, torch.tensor(2.0)), "input scale is a single number; give it the batch's dimension"),
        ((x, 1, None, 4), "Flagged refuses input 1x3x8x8: TypeError: too many positional"),
        (x[:, :1], "Flagged refuses input 1x1x8x8: RuntimeError: "),
    ):
        with pytest.raises((UsageError, ModelError), match=text):
            pk.export(model, example, path)
    with pytest.raises(ModelError, match="Flagged has no values"):
        pk.export(Flagged().to("meta"), x, path)
    (tmp_path / "important").write_text("old")
    for name in ("important", "m.engine", "m.xml"):
        with pytest.raises(UsageError, match=rf"output .*{name}: an ONNX file is named FILE\.onnx"):
            pk.export(model, x, tmp_path / name)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_are_exported_in_fp32(tmp_path, dtype):
    model = randomise(Plain()).to(dtype)
    artifact = pk.export(model, image().to(dtype).requires_grad_(), tmp_path / "m.onnx")
    assert artifact.apart < 1e-5
    found = run(artifact.path, input=image().to(dtype).float().numpy())[1]
    assert relative(model.float()(image().to(dtype).float()).detach().numpy(), found[0]) < 1e-5


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda t: t * np.float32(1.001),
            r"differs from Plain by 1\.0e-03 of the output at batch 1",
        ),
        (lambda t: t * np.float32("nan"), "differs from Plain by nan of the output"),
        (lambda t: t[:-1], r"gives an output of shape \(1, 3\) at batch 1, Plain one of \(1, 4\)"),
    ],
)
def test_an_export_that_differs_is_refused_and_leaves_no_file(
    tmp_path, monkeypatch, tamper, message
):
    write = exporting._write

    def wrong(model, inputs, path, **options):
        write(model, inputs, path, **options)
        graph = onnx.load(path)
        for tensor in graph.graph.initializer:
            if tensor.name.startswith("fc."):
                array = np.ascontiguousarray(tamper(numpy_helper.to_array(tensor)))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        del graph.graph.output[0].type.tensor_type.shape.dim[1:]
        graph.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "classes"
        onnx.save(graph, path)

    monkeypatch.setattr(exporting, "_write", wrong)
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(ModelError, match=message):
        pk.export(randomise(Plain()), image(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "logs"))

    class Depends(Plain):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    with pytest.raises(ModelError, match="cannot export Depends to ONNX: ") as caught:
        pk.export(Depends(), image(), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="in fp32, fp16, int8, not bf16"):
        pk.export(Plain(), image(), tmp_path / "m.onnx", precision="bf16")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        pk.export(Plain(), image(), tmp_path / "file" / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "logs"]


def test_a_live_artifact_is_a_copy_for_evaluation():
    model = randomise(Plain()).train()
    artifact = live_artifact(model, image())
    assert artifact.format == "module"
    assert artifact.module is not model
    assert not artifact.module.training
    assert model.training
    assert artifact.input_shapes == {"input": (-1, 3, 8, 8)}
