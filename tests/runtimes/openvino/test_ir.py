"""OpenVINO's IR: written whole, with the model's outputs, or not at all."""

from __future__ import annotations

import pytest
import torch

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.exporting import export_openvino
from prunekit.runtimes.openvino import runtime as ov_runtime
from prunekit.runtimes.openvino.runtime import OpenVino
from prunekit.support.errors import FileError, ModelError, UsageError
from support.nets import (
    Residual,
    image,
    randomise,
)
from support.openvino import FP32, relative

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")


def test_ir_is_written_whole_and_gives_the_models_outputs(exported, tmp_path):
    module, example, _ = exported("Residual")
    artifact = export_openvino(module, example, tmp_path / "m.xml")
    assert artifact.format == "openvino"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    engine = OpenVino().load(artifact, FP32)
    x = image(3)
    with torch.no_grad():
        assert relative(module(x).numpy(), engine.run({"input": x.numpy()})[0]) < 1e-5
    engine.close()
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(FileError, match=r"m\.xml is not a model OpenVINO can load"):
        OpenVino().load(Artifact.of_file(tmp_path / "m.xml"), FP32)
    with pytest.raises(UsageError, match=r"two files, FILE\.xml and FILE\.bin"):
        export_openvino(module, example, tmp_path / "m.onnx")


def test_ir_that_cannot_be_trusted_replaces_nothing(exported, tmp_path, monkeypatch):
    module, example, _ = exported("Residual")
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("before")
    other = randomise(Residual(), seed=1)
    whole = pk.export(other, example, tmp_path / "other.onnx").path
    write = ov_runtime.write_ir
    monkeypatch.setattr(ov_runtime, "write_ir", lambda _, path: write(whole, path))
    with pytest.raises(ModelError, match="the exported OpenVINO IR differs from Residual by"):
        export_openvino(module, example, tmp_path / "m.xml")
    assert [(tmp_path / name).read_text() for name in ("m.xml", "m.bin")] == ["before"] * 2
