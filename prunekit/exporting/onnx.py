"""ONNX export, checked against the module it came from."""

from __future__ import annotations

import copy
import io
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.helper import set_model_props
from torch import Tensor, nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.comparing import compare
from prunekit.exporting.form import NATIVE_OPSET, OnnxForm, check_form, rebatched, settle_form
from prunekit.exporting.inputs import bound, named_inputs, output_names, prepared
from prunekit.exporting.precision import check_known, lower
from prunekit.exporting.refusals import ExportError, collected, with_details
from prunekit.exporting.shortcuts import shortcuts
from prunekit.networks.running import call
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError, UsageError, first_line
from prunekit.support.files import replacing
from prunekit.support.progress import say
from prunekit.support.time_limit import OutOfTimeError, time_limit

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
    opset: int | None = None,
    ir_version: int | None = None,
    dynamic: Sequence[str] = ("batch",),
    tolerance: float | None = None,
    max_seconds: float | None = None,
) -> Artifact:
    """Write ``model`` as one ONNX file (weights inside, dynamic batch) and compare its outputs.

    ``example`` is a tensor, a tuple or a dict of inputs whose first dimension is the batch. The
    file appears at ``path`` only after ONNX Runtime gave PyTorch's outputs at batches 1 and 2 to
    a relative tolerance (`TOLERANCES`); otherwise a `ModelError` says how far they are
    apart. ``precision`` fp16 and int8 are written into the file; int8 needs ``batches`` (inputs by
    name) for its ranges, and is compared on them. ``runtime`` is whom an int8 file is for.
    ``finish`` may change the file in fp32 before that; its metadata is carried over.

    ``opset`` is the version of its operators, 11 to 25, and ``ir_version`` the file format's; by
    default PyTorch's. ``dynamic`` names the sizes that stay free: ``batch``, ``height``, ``width``,
    ``depth``, ``length``, or an axis by its number; none for a fixed batch. Where the batch cannot
    stay free, it is the example's, and a note says so. ``tolerance`` is in place of the
    precision's. An export that takes more than ``max_seconds`` is given up.
    """
    check_known(precision)
    if Path(path).suffix != ".onnx":
        raise UsageError(f"output {path}: an ONNX file is named FILE.onnx")
    given = OnnxForm(opset, ir_version, tuple(dynamic), tolerance, max_seconds)
    subject = _Subject.of(model, example)
    lowering = _Lowering(precision, tuple(batches), runtime)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder, replacing(path) as temporary:
        where = Path(folder), Path(temporary)
        try:
            with time_limit(given.max_seconds):
                shapes, apart = _attempt(subject, given, lowering, where, finish)
        except OutOfTimeError:
            raise ModelError(
                f"the export of {subject.name} took more than {given.max_seconds:g} s; give it more"
                " (--max-seconds), or a smaller input"
            ) from None
        except ExportError as error:
            raise with_details(error) from error.__cause__
    return Artifact.of_file(path, precision=precision, plan=plan, input_shapes=shapes, apart=apart)


@dataclass(frozen=True)
class _Lowering:
    """The precision that a file is written in, and what that takes."""

    precision: str
    batches: tuple[Arrays, ...]
    runtime: str


@dataclass(frozen=True)
class _Subject:
    """A model ready for export, with its inputs: as given, and at a batch of two."""

    name: str
    model: nn.Module
    inputs: dict[str, Tensor]
    pair: dict[str, Tensor]
    as_dict: bool

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> _Subject:
        name = type(model).__name__
        model, example = bound(model, example)
        return cls(name, *prepared(model, example), isinstance(example, dict))

    def shown(self, form: OnnxForm) -> dict[str, Tensor]:
        """Inputs that the exporter follows; a free batch of one would be taken for a constant."""
        return self.pair if form.free_batch else self.inputs

    def feeds(self, form: OnnxForm) -> list[Arrays]:
        """Inputs that outputs are compared on: batches of 1 and 2, and other free sizes doubled."""
        shown = self.shown(form)
        sizes = [value[:1] for value in shown.values()], [*shown.values()]
        rows = sizes if form.free_batch else sizes[1:]
        feeds = [dict(zip(shown, values, strict=True)) for values in rows]
        free = form.axes(shown)
        for axis in sorted({axis for axes in free.values() for axis in axes} - {0}):
            doubled = {n: _doubled(v, axis) if axis in free[n] else v for n, v in shown.items()}
            try:
                call(self.model, doubled if self.as_dict else tuple(doubled.values()))
            except Exception as error:
                raise ModelError(
                    f"{self.name} does not take inputs of twice the size along axis {axis}, which "
                    f"is to be dynamic: {first_line(error, longest=200)}"
                ) from error
            feeds.append(doubled)
        return [{name: value.numpy() for name, value in feed.items()} for feed in feeds]

    def shapes(self, form: OnnxForm) -> dict[str, tuple[int, ...]]:
        """What an artifact tells of its inputs; -1 is a free batch."""
        return {
            name: (-1 if form.free_batch else len(value), *value.shape[1:])
            for name, value in self.inputs.items()
        }


def _doubled(value: Tensor, axis: int) -> Tensor:
    return torch.cat([value, value], dim=axis)


def _attempt(
    subject: _Subject,
    form: OnnxForm,
    lowering: _Lowering,
    where: tuple[Path, Path],
    finish: Callable[[Path], None] | None,
) -> tuple[dict[str, tuple[int, ...]], float]:
    """The file in the form, or with a fixed batch where a free one cannot be."""
    try:
        return _made(subject, form, lowering, where, finish)
    except (ModelError, UsageError) as error:
        if form.dynamic != OnnxForm.dynamic:
            raise
        fixed = replace(form, dynamic=())
        try:
            made = _made(subject, fixed, lowering, where, finish)
        except (ModelError, UsageError):
            raise error from None
        batch = len(next(iter(subject.inputs.values())))
        say(
            f"note: the batch of {subject.name} cannot stay free in ONNX: the file takes batches "
            f"of {batch} ({first_line(error, longest=120)})"
        )
        return made


def _made(
    subject: _Subject,
    form: OnnxForm,
    lowering: _Lowering,
    where: tuple[Path, Path],
    finish: Callable[[Path], None] | None,
) -> tuple[dict[str, tuple[int, ...]], float]:
    """Write the file and compare it; the shapes of its inputs, and how far it is apart."""
    folder, temporary = where
    precision, target = lowering.precision, Target.parse("onnxruntime:cpu")
    exact = folder / "exact.onnx" if precision != "fp32" else temporary
    form.axes(subject.inputs)
    _write(subject.model, subject.shown(form), exact, is_dict=subject.as_dict, form=form)
    check_form(exact, form, subject.inputs)
    if finish is not None:
        finish(exact)
    shapes, feeds = subject.shapes(form), subject.feeds(form)
    artifact = Artifact(str(exact), "onnx", input_shapes=shapes)
    if not form.free_batch:
        target = replace(target, batch=len(next(iter(subject.inputs.values()))))
    told: Any = {"is_dict": subject.as_dict, "tolerance": form.tolerance}
    apart = compare(subject.model, artifact, feeds, target, **told)
    if precision != "fp32":
        batches = lowering.batches if form.free_batch else rebatched(lowering.batches, target.batch)
        seen = [*feeds, *batches] if precision == "fp16" else batches
        artifact = lower(artifact, temporary, precision, seen, lowering.runtime)
        _carry_metadata(exact, temporary)
        check_form(temporary, form, subject.inputs)
        few = _few(seen) if form.free_batch else seen[: COMPARED // target.batch + 1]
        apart = compare(subject.model, artifact, few, target, **told)
    return shapes, apart


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
    tolerance: float | None = None,
) -> float:
    """How far ``artifact``'s outputs on ``target`` are from ``model``'s; `ModelError` if too far.

    At batches 1 and 2, or at the one that it takes, of int8 on ``batches``; see
    :data:`prunekit.exporting.comparing.TOLERANCES`.
    """
    subject = _Subject.of(model, example)
    first = next(iter(artifact.input_shapes.values()), (-1,))[0]
    form = OnnxForm() if first < 0 else OnnxForm(dynamic=())
    feeds = _few(batches) if artifact.precision == "int8" else subject.feeds(form)
    told: Any = {"is_dict": subject.as_dict, "tolerance": tolerance}
    return compare(subject.model, artifact, feeds, target, **told)


def _few(batches: Sequence[Arrays]) -> list[Arrays]:
    """At most :data:`COMPARED` rows of each of the first few."""
    return [{n: v[:COMPARED] for n, v in batch.items()} for batch in batches[:4]]


def live_artifact(model: nn.Module, example: Any, plan: str | None = None) -> Artifact:
    """The live module itself, for runtimes that take one."""
    model, example = bound(model, example)
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    shapes = {n: (-1, *value.shape[1:]) for n, value in named_inputs(example).items()}
    return Artifact("", "module", input_shapes=shapes, plan=plan, module=working)


def _write(
    model: nn.Module,
    inputs: dict[str, Tensor],
    path: Path,
    *,
    is_dict: bool,
    form: OnnxForm | None = None,
) -> None:
    form = form or OnnxForm()
    arguments: dict[str, Any] = {"args": () if is_dict else tuple(inputs.values())}
    if is_dict:
        arguments["kwargs"] = inputs
    if form.dynamic:
        free = _free_sizes(form, inputs)
        arguments["dynamic_shapes"] = free if is_dict else tuple(free.values())
    if form.opset is not None:
        arguments["opset_version"] = max(form.opset, NATIVE_OPSET)
    told = io.StringIO()
    try:
        with warnings.catch_warnings(), collected(told), shortcuts():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                model,
                input_names=list(inputs),
                output_names=output_names(model, inputs, is_dict=is_dict),
                verbose=False,
                dynamo=True,
                **arguments,
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
        cause = first_line(text, "no message", 300)
        if cause.endswith(":"):
            cause = " ".join(text.split())[:300]
        details = f"{told.getvalue()}\n{''.join(traceback.format_exception(error))}"
        raise ExportError(
            f"cannot export {type(model).__name__} to ONNX: {type(error).__name__}: {cause}",
            details,
        ) from error
    settle_form(path, form)


def _free_sizes(form: OnnxForm, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The free sizes as the exporter takes them; sizes of one name are equal in all inputs."""
    if form.dynamic == OnnxForm.dynamic:
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in inputs}
    return dict(form.axes(inputs))


def _forget_sources(program: Any) -> None:
    """Leave out where in the sources each operator comes from: paths of the machine that exports.

    A deployed file tells nothing of it, and is the same wherever it was made.
    """
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
