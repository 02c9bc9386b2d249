"""ONNX export, checked against the module it came from."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.artifact import Artifact
from prunekit.errors import ModelError, UsageError
from prunekit.runtimes import runtime_for
from prunekit.serialize import replacing
from prunekit.target import Target

TOLERANCE = 1e-4
"""Largest difference allowed between both outputs, relative to the largest output."""
_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO IR"}


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    precision: str = "fp32",
    plan: str | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Artifact:
    """Write ``model`` as one ONNX file (weights inside, dynamic batch) and compare its outputs.

    ``example`` is a tensor, a tuple or a dict of inputs whose first dimension is the batch. The
    file appears at ``path`` only after ONNX Runtime gave PyTorch's outputs at batches 1 and 2 to
    a relative :data:`TOLERANCE`; otherwise a `ModelError` says how far they are apart. ``finish``
    may change the file before that.
    """
    if precision != "fp32":
        raise UsageError(f"ONNX export has precision fp32 for now, not {precision}")
    working, inputs, pair = _prepared(model, example)
    with replacing(path) as temporary:
        _write(working, pair, temporary, is_dict=isinstance(example, dict))
        if finish is not None:
            finish(temporary)
        shapes = {name: (-1, *value.shape[1:]) for name, value in inputs.items()}
        found = Artifact(str(temporary), "onnx", precision, input_shapes=shapes)
        target = Target.parse("onnxruntime:cpu")
        _compare(working, found, pair, target, is_dict=isinstance(example, dict))
    return Artifact.of_file(path, precision=precision, plan=plan, input_shapes=shapes)


def compare_outputs(model: nn.Module, artifact: Artifact, example: Any, target: Target) -> None:
    """Raise `ModelError` unless ``artifact`` gives ``model``'s outputs on ``target``.

    At batches 1 and 2, to a relative :data:`TOLERANCE`.
    """
    working, _, pair = _prepared(model, example)
    _compare(working, artifact, pair, target, is_dict=isinstance(example, dict))


def _prepared(
    model: nn.Module, example: Any
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A copy to export, its inputs by name, and the same at batch 2."""
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    inputs = named_inputs(example)
    pair = {name: torch.cat([value, value])[:2] for name, value in inputs.items()}
    with torch.no_grad():  # a model may remember the batch that it saw last
        working(**inputs) if isinstance(example, dict) else working(*inputs.values())
    return working, inputs, pair


def live_artifact(model: nn.Module, example: Any, plan: str | None = None) -> Artifact:
    """The live module itself, for runtimes that take one."""
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    shapes = {n: (-1, *value.shape[1:]) for n, value in named_inputs(example).items()}
    return Artifact("", "module", input_shapes=shapes, plan=plan, module=working)


def named_inputs(example: Any) -> dict[str, Tensor]:
    """The example's tensors by the names of the forward's arguments."""
    if isinstance(example, dict):
        return {key: value.cpu() for key, value in example.items() if isinstance(value, Tensor)}
    values = example if isinstance(example, tuple) else (example,)
    names = ["input"] if len(values) == 1 else [f"input{i}" for i in range(len(values))]
    return {name: value.cpu() for name, value in zip(names, values, strict=True)}


def _write(model: nn.Module, inputs: dict[str, Tensor], path: Path, *, is_dict: bool) -> None:
    batch = {0: torch.export.Dim("batch")}
    arguments: dict[str, Any] = (
        {"args": (), "kwargs": inputs, "dynamic_shapes": dict.fromkeys(inputs, batch)}
        if is_dict
        else {"args": tuple(inputs.values()), "dynamic_shapes": tuple(batch for _ in inputs)}
    )
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                f=str(path),
                input_names=list(inputs),
                external_data=False,
                verbose=False,
                dynamo=True,
                **arguments,
            )
    except Exception as error:
        if isinstance(error, OSError):
            raise
        deepest: BaseException = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        text = re.sub("\x1b\\[[0-9;]*m", "", str(deepest)).strip()
        cause = (text.splitlines() or ["no message"])[0]
        raise ModelError(
            f"cannot export {type(model).__name__} to ONNX: {type(error).__name__}: {cause}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(
    model: nn.Module,
    artifact: Artifact,
    pair: dict[str, Tensor],
    target: Target,
    *,
    is_dict: bool,
) -> None:
    name = _NAMES[artifact.format]
    engine = runtime_for(target).load(artifact, target)
    try:
        for batch in (1, 2):
            given = {name: value[:batch] for name, value in pair.items()}
            with torch.no_grad():
                out = model(**given) if is_dict else model(*given.values())
            expected = [t.numpy() for t in tree_leaves(out) if isinstance(t, Tensor)]
            found = engine.run({name: value.numpy() for name, value in given.items()})
            if len(found) != len(expected):
                raise ModelError(
                    f"the exported {name} has {len(found)} outputs, {type(model).__name__} "
                    f"has {len(expected)}"
                )
            for left, right in zip(expected, found, strict=True):
                if left.shape != right.shape:
                    raise ModelError(
                        f"the exported {name} gives an output of shape {right.shape} at batch "
                        f"{batch}, {type(model).__name__} one of {left.shape}"
                    )
                if not left.size:
                    continue
                left, right = left.astype(np.float64), right.astype(np.float64)
                scale = max(float(np.abs(left).max()), 1e-6)
                difference = float(np.abs(left - right).max()) / scale
                if not difference <= TOLERANCE:  # also when it is not a number
                    raise ModelError(
                        f"the exported {name} differs from {type(model).__name__} by "
                        f"{difference:.1e} of the output at batch {batch} "
                        f"(allowed: {TOLERANCE:.0e})"
                    )
    finally:
        engine.close()
