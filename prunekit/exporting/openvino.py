"""OpenVINO's own file format, checked against the module it came from."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.onnx import compare_outputs, export
from prunekit.runtimes import runtime_for
from prunekit.support.errors import FileError, UsageError
from prunekit.support.files import replacing


def export_openvino(
    model: nn.Module,
    example: Any,
    path: str | Path,
    precision: str = "fp32",
    plan: str | None = None,
) -> Artifact:
    """Write ``model`` as OpenVINO IR: ``path`` (``.xml``) and its weights beside it (``.bin``).

    The weights are fp32 and the batch dynamic; what it computes in, the target says. The files
    appear only after OpenVINO gave PyTorch's outputs; otherwise a `ModelError` says how far they
    are apart. The artifact's checksum is that of the ``.xml``.
    """
    from prunekit.runtimes.openvino.runtime import write_ir

    path = Path(path)
    if path.suffix != ".xml":
        raise UsageError(f"output {path}: OpenVINO's format is two files, FILE.xml and FILE.bin")
    runtime_for(Target.parse("openvino:cpu"))
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        onnx = export(model, example, Path(folder) / "model.onnx", precision)
        made = Path(folder) / "model.xml"
        write_ir(onnx.path, made)
        artifact = replace(onnx, path=str(made), format="openvino")
        apart = compare_outputs(model, artifact, example, Target.parse("openvino:cpu"))
        _put(made, path)
    shapes = onnx.input_shapes
    return Artifact.of_file(path, precision=precision, plan=plan, input_shapes=shapes, apart=apart)


def _put(made: Path, path: Path) -> None:
    """Both files in place; an interrupt leaves no ``.xml`` rather than one of other weights."""
    weights = path.with_suffix(".bin")
    with replacing(path) as xml, replacing(weights) as binary:
        shutil.copyfile(made, xml)
        shutil.copyfile(made.with_suffix(".bin"), binary)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error
