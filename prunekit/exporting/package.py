"""AOTInductor packages, checked against the module they came from."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.inputs import bound, named_inputs
from prunekit.exporting.onnx import compare_outputs
from prunekit.runtimes import runtime_for
from prunekit.runtimes.sidecar import save_described
from prunekit.runtimes.torch.cuda import settings
from prunekit.runtimes.torch.module import DTYPES
from prunekit.runtimes.torch.package import KIND, PackageFacts
from prunekit.support.errors import ModelError, first_line
from prunekit.support.files import sha256_file


def export_package(
    model: nn.Module, example: Any, path: str | Path, target: Target, plan: str | None = None
) -> Artifact:
    """Compile ``model`` for ``target`` (``torch:...``) into ``path``, description beside it.

    The batch stays open. Both files appear only after the package gave PyTorch's outputs.
    """
    runtime = runtime_for(target)
    model, example = bound(model, example)
    path, inputs = Path(path), named_inputs(example)
    shapes = {name: (-1, *value.shape[1:]) for name, value in inputs.items()}
    environment = runtime.environment(target)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        made = Path(folder) / "model.pt2"
        _compile(model, inputs, made, target)
        facts = PackageFacts(
            file_sha256=sha256_file(made),
            target=str(target),
            precision=target.precision,
            device=environment.device_name,
            torch=environment.runtime_version,
            inputs=shapes,
            created=environment.created,
        )
        save_described(made, made.read_bytes(), facts, KIND)
        artifact = Artifact(str(made), "aotinductor", target.precision, input_shapes=shapes)
        apart = compare_outputs(model, artifact, example, target)
        save_described(path, made.read_bytes(), facts, KIND)
    return replace(artifact, path=str(path), sha256=facts.file_sha256, plan=plan, apart=apart)


def _compile(model: nn.Module, inputs: dict[str, torch.Tensor], path: Path, target: Target) -> None:
    device, dtype = torch.device(target.device), DTYPES[target.precision]
    module = copy.deepcopy(model).eval().requires_grad_(False).to(device, dtype)
    # a batch of one would be taken for a constant
    pair = [torch.cat([v, v])[:2].to(device) for v in inputs.values()]
    pair = [v.to(dtype) if v.is_floating_point() else v for v in pair]
    batch = {0: torch.export.Dim("batch")}
    quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with warnings.catch_warnings(), quiet, torch.inference_mode(), settings(target.precision):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, tuple(pair), dynamic_shapes=tuple(batch for _ in pair)
            )
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # the compiler's errors are of many kinds
        reason = first_line(error, "no message", 200)
        raise ModelError(
            f"cannot compile {type(model).__name__} for {target}: {type(error).__name__}: {reason}"
        ) from error
