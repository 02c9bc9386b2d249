"""ONNX export, checked against the module it came from."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.helper import set_model_props
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.precision import check_known, lower
from prunekit.exporting.shortcuts import shortcuts
from prunekit.networks.running import refusing
from prunekit.networks.slimming import named_tensors
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError, UsageError, first_line
from prunekit.support.files import replacing

TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 6e-2, "int8": 0.3}
"""How far outputs may be apart: the largest difference relative to the largest output, of int8 the
root mean square of both."""
_NAMES = {
    "onnx": "ONNX",
    "openvino": "OpenVINO IR",
    "tensorrt": "TensorRT engine",
    "aotinductor": "AOTInductor package",
}
COMPARED = 16
"""Rows of the user's data that outputs are compared on."""


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    precision: str = "fp32",
    plan: str | None = None,
    *,
    batches: Sequence[Arrays] = (),
    runtime: str = "onnxruntime",
    finish: Callable[[Path], None] | None = None,
) -> Artifact:
    """Write ``model`` as one ONNX file (weights inside, dynamic batch) and compare its outputs.

    ``example`` is a tensor, a tuple or a dict of inputs whose first dimension is the batch. The
    file appears at ``path`` only after ONNX Runtime gave PyTorch's outputs at batches 1 and 2 to
    a relative tolerance (:data:`TOLERANCES`); otherwise a `ModelError` says how far they are
    apart. ``precision`` fp16 and int8 are written into the file; int8 needs ``batches`` (inputs by
    name) for its ranges, and is compared on them. ``runtime`` is whom an int8 file is for.
    ``finish`` may change the file in fp32 before that; its metadata is carried over.
    """
    check_known(precision)
    if Path(path).suffix != ".onnx":
        raise UsageError(f"output {path}: an ONNX file is named FILE.onnx")
    model, example = bound(model, example)
    working, inputs, pair = prepared(model, example)
    shapes = {name: (-1, *value.shape[1:]) for name, value in inputs.items()}
    as_dict = isinstance(example, dict)
    target = Target.parse("onnxruntime:cpu")
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder, replacing(path) as temporary:
        exact = Path(folder) / "exact.onnx" if precision != "fp32" else temporary
        _write(working, pair, exact, is_dict=as_dict)
        if finish is not None:
            finish(exact)
        artifact = Artifact(str(exact), "onnx", input_shapes=shapes)
        feeds = _feeds(pair)
        apart = _compare(working, artifact, feeds, target, is_dict=as_dict)
        if precision != "fp32":
            seen = [*feeds, *batches] if precision == "fp16" else batches
            artifact = lower(artifact, temporary, precision, seen, runtime)
            _carry_metadata(exact, temporary)
            apart = _compare(working, artifact, _few(seen), target, is_dict=as_dict)
    return Artifact.of_file(path, precision=precision, plan=plan, input_shapes=shapes, apart=apart)


def _carry_metadata(source: Path, target: Path) -> None:
    """Give ``target`` the properties of ``source``, which lowering to fewer bits may drop."""
    properties = {
        p.key: p.value for p in onnx.load(source, load_external_data=False).metadata_props
    }
    if properties:
        proto = onnx.load(target)
        set_model_props(proto, {p.key: p.value for p in proto.metadata_props} | properties)
        onnx.save(proto, target)


def compare_outputs(
    model: nn.Module,
    artifact: Artifact,
    example: Any,
    target: Target,
    batches: Sequence[Arrays] = (),
) -> float:
    """How far ``artifact``'s outputs on ``target`` are from ``model``'s; `ModelError` if too far.

    At batches 1 and 2, of int8 on ``batches``; see :data:`TOLERANCES`.
    """
    model, example = bound(model, example)
    working, _, pair = prepared(model, example)
    feeds = _few(batches) if artifact.precision == "int8" else _feeds(pair)
    return _compare(working, artifact, feeds, target, is_dict=isinstance(example, dict))


def _feeds(pair: dict[str, Tensor]) -> list[Arrays]:
    return [{name: value[:batch].numpy() for name, value in pair.items()} for batch in (1, 2)]


def _few(batches: Sequence[Arrays]) -> list[Arrays]:
    """At most :data:`COMPARED` rows of each of the first few."""
    return [{n: v[:COMPARED] for n, v in batch.items()} for batch in batches[:4]]


def prepared(
    model: nn.Module, example: Any
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A copy to export, its inputs by name, and the same at batch 2."""
    if any(tensor.is_meta for _, tensor in named_tensors(model)):
        raise ModelError(f"{type(model).__name__} has no values (device meta); load its weights")
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    inputs = named_inputs(example)
    for name, value in inputs.items():
        if not value.ndim:
            raise UsageError(f"input {name} is a single number; give it the batch's dimension")
    if {p.dtype for p in working.parameters()} & {torch.float16, torch.bfloat16}:
        working = working.float()  # files in less than fp32 are made from those
        inputs = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    pair = {name: torch.cat([value, value])[:2] for name, value in inputs.items()}
    # a model may remember the batch that it saw last
    with torch.no_grad(), refusing(working, inputs):
        working(**inputs) if isinstance(example, dict) else working(*inputs.values())
    return working, inputs, pair


def live_artifact(model: nn.Module, example: Any, plan: str | None = None) -> Artifact:
    """The live module itself, for runtimes that take one."""
    model, example = bound(model, example)
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    shapes = {n: (-1, *value.shape[1:]) for n, value in named_inputs(example).items()}
    return Artifact("", "module", input_shapes=shapes, plan=plan, module=working)


def bound(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """``model`` with all inputs that are no tensors bound to it, and the example without them.

    A flag or a number among them decides what is computed, and is no input of a file. What is
    returned takes the tensors by name or in the example's order.
    """
    if isinstance(example, Tensor):
        return model, example
    if not isinstance(example, tuple | dict):
        raise UsageError(
            f"`example` must be a tensor, a tuple or a dict of inputs, not {type(example).__name__}"
        )
    forward = inspect.signature(model.forward)
    if isinstance(example, dict):
        given, in_order = example, [*example] == [*forward.parameters][: len(example)]
        if in_order and all(isinstance(value, Tensor) for value in given.values()):
            return model, example
    else:
        if all(isinstance(value, Tensor) for value in example):
            return model, example
        with refusing(model, example):
            given = dict(forward.bind(*example).arguments)
    kinds = {name: part.kind for name, part in forward.parameters.items()}
    for name, value in given.items():
        if isinstance(value, Tensor):
            continue
        tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
        if tensors or kinds.get(name) == inspect.Parameter.VAR_POSITIONAL:
            raise UsageError(
                f"input {name} of {type(model).__name__} holds several; give tensors by themselves"
            )
    fixed = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    inputs = {name: value for name, value in given.items() if name not in fixed}
    working = copy.deepcopy(model)
    working.forward = _Bound(working.forward, tuple(inputs), fixed)
    return working, inputs


class _Bound:
    """A model's forward with some inputs given; the others by ``names`` or in their order."""

    def __init__(
        self, forward: Callable[..., Any], names: tuple[str, ...], fixed: dict[str, Any]
    ) -> None:
        self.forward, self.names, self.fixed = forward, names, fixed
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self.forward(**dict(zip(self.names, values, strict=False)), **named, **self.fixed)


def named_inputs(example: Any) -> dict[str, Tensor]:
    """The example's tensors by the names of the forward's arguments."""
    if isinstance(example, dict):
        return {key: value.detach().cpu() for key, value in example.items()}
    values = example if isinstance(example, tuple) else (example,)
    names = ["input"] if len(values) == 1 else [f"input{i}" for i in range(len(values))]
    return {name: value.detach().cpu() for name, value in zip(names, values, strict=True)}


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
        quiet = contextlib.redirect_stdout(io.StringIO())
        with warnings.catch_warnings(), quiet, shortcuts():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                model, input_names=list(inputs), verbose=False, dynamo=True, **arguments
            )
        _forget_sources(program)
        program.save(str(path), external_data=False)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        deepest: BaseException = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        text = re.sub("\x1b\\[[0-9;]*m", "", str(deepest)).strip()
        cause = first_line(text, "no message")
        raise ModelError(
            f"cannot export {type(model).__name__} to ONNX: {type(error).__name__}: {cause}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _forget_sources(program: Any) -> None:
    """Leave out where in the sources each operator comes from: paths of the machine that exports.

    A deployed file tells nothing of it, and is the same wherever it was made.
    """
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _compare(
    model: nn.Module,
    artifact: Artifact,
    feeds: Sequence[Arrays],
    target: Target,
    *,
    is_dict: bool,
) -> float:
    name, allowed = _NAMES[artifact.format], TOLERANCES[artifact.precision]
    engine = runtime_for(target).load(artifact, target)
    furthest = 0.0
    try:
        for feed in feeds:
            given = {key: torch.from_numpy(np.asarray(value)) for key, value in feed.items()}
            with torch.no_grad():
                out = model(**given) if is_dict else model(*given.values())
            expected = [t.numpy() for t in tree_leaves(out) if isinstance(t, Tensor)]
            outputs = engine.run(feed)
            if len(outputs) != len(expected):
                raise ModelError(
                    f"the exported {name} has {len(outputs)} outputs, {type(model).__name__} "
                    f"has {len(expected)}"
                )
            batch = len(next(iter(feed.values())))
            for left, right in zip(expected, outputs, strict=True):
                if left.shape != right.shape:
                    raise ModelError(
                        f"the exported {name} gives an output of shape {right.shape} at batch "
                        f"{batch}, {type(model).__name__} one of {left.shape}"
                    )
                if not left.size:
                    continue
                difference = _apart(left, right, artifact.precision)
                if not difference <= allowed:  # also when it is not a number
                    raise ModelError(
                        f"the exported {name} differs from {type(model).__name__} by "
                        f"{difference:.1e} of the output at batch {batch} "
                        f"(allowed: {allowed:.0e})"
                    )
                furthest = max(furthest, difference)
    finally:
        engine.close()
    return furthest


def _apart(expected: NDArray[Any], actual: NDArray[Any], precision: str) -> float:
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    if precision == "int8":
        return float(np.linalg.norm(left - right) / max(float(np.linalg.norm(left)), 1e-6))
    return float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-6))
