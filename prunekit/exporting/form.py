"""The form that an ONNX file is wanted in: the version of its operators, the sizes left free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.helper import find_min_ir_version_for, make_opsetid
from torch import Tensor

from prunekit.exporting.opset import lower_opset
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError, UsageError

OLDEST_OPSET, NATIVE_OPSET = 11, 18
"""The oldest operators a file can be written in, and the oldest that PyTorch writes itself."""
_AXES = {
    2: {"length": 1},
    3: {"length": 2},
    4: {"height": 2, "width": 3},
    5: {"depth": 2, "height": 3, "width": 4},
}
"""Where the sizes that have a name are, by the number of an input's axes."""


@dataclass(frozen=True)
class OnnxForm:
    """How an ONNX file is written.

    ``dynamic`` names the sizes that stay free: ``batch``, ``height``, ``width``, ``depth``,
    ``length``, or an axis by its number. ``opset`` and ``ir_version`` are PyTorch's unless given.
    ``tolerance`` is how far outputs may be apart in place of the precision's own.
    """

    opset: int | None = None
    ir_version: int | None = None
    dynamic: tuple[str, ...] = ("batch",)
    tolerance: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        newest = min(onnx.defs.onnx_opset_version(), 25)
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= newest:
            raise UsageError(
                f"opset {self.opset}: files are written in opset {OLDEST_OPSET} to {newest}"
            )
        least = 4 if self.opset is None else least_ir_version(self.opset)
        if self.ir_version is not None and not least <= self.ir_version <= onnx.IR_VERSION:
            of = "" if self.opset is None else f" of opset {self.opset}"
            raise UsageError(
                f"IR version {self.ir_version}: files{of} are written in {least} to "
                f"{onnx.IR_VERSION}"
            )
        known = {"batch", *(name for names in _AXES.values() for name in names)}
        for name in self.dynamic:
            if name not in known and not name.isdecimal():
                raise UsageError(
                    f"dynamic size {name!r} is not known; write {', '.join(sorted(known))}, or an "
                    "axis by its number"
                )
        if self.tolerance is not None and not 0 < self.tolerance <= 1:
            raise UsageError(f"tolerance {self.tolerance:g} must be above 0 and at most 1")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UsageError(f"max_seconds {self.max_seconds:g} must be above 0")

    def flags(self) -> str:
        """The first of its flags that was given."""
        given = (
            ("--opset", self.opset),
            ("--ir-version", self.ir_version),
            ("--tolerance", self.tolerance),
            ("--max-seconds", self.max_seconds),
        )
        return next((flag for flag, value in given if value is not None), "--static or --dynamic")

    @property
    def free_batch(self) -> bool:
        """Whether the batch stays free."""
        return bool({"batch", "0"} & set(self.dynamic))

    def axes(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
        """The free axes of each input, with their names; UsageError for one that no input has."""
        free = {
            name: {
                axis: word if not word.isdecimal() else f"axis{axis}"
                for word in self.dynamic
                if (axis := _axis(word, value.ndim)) is not None
            }
            for name, value in inputs.items()
        }
        for word in self.dynamic:
            if all(_axis(word, value.ndim) is None for value in inputs.values()):
                sizes = ", ".join("x".join(map(str, value.shape)) for value in inputs.values())
                raise UsageError(f"no input has a dynamic size {word!r}; inputs are {sizes}")
        return free


def least_ir_version(opset: int) -> int:
    """The oldest file format that may hold operators of this version."""
    return int(find_min_ir_version_for([make_opsetid("", opset)]))


def _axis(word: str, axes: int) -> int | None:
    """Where a size is among so many axes; None where there is none of that name."""
    if word.isdecimal():
        return int(word) if int(word) < axes else None
    return 0 if word == "batch" else _AXES.get(axes, {}).get(word)


def settle_form(path: Path, form: OnnxForm) -> None:
    """Rewrite a file of PyTorch's in the operators and the format that are wanted."""
    if form.opset is None and form.ir_version is None:
        return
    model = onnx.load(path)
    if form.opset is not None and form.opset < NATIVE_OPSET:
        model = lower_opset(model, form.opset)
    if form.ir_version is not None:
        model.ir_version = form.ir_version
    elif form.opset is not None:
        model.ir_version = least_ir_version(form.opset)
    onnx.save(model, path)


def check_form(path: Path, form: OnnxForm, inputs: Mapping[str, Tensor]) -> None:
    """Raise ModelError where a file is not in the form that is wanted."""
    model = onnx.load(path, load_external_data=False)
    opset = next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    if form.opset is not None and opset != form.opset:
        raise ModelError(f"the file came out in opset {opset}, not {form.opset}")
    if form.ir_version is not None and model.ir_version != form.ir_version:
        raise ModelError(
            f"the file came out in IR version {model.ir_version}, not {form.ir_version}"
        )
    sizes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for name, axes in form.axes(inputs).items():
        if name not in sizes:
            raise ModelError(f"the file has no input {name}: the network does not use it")
        for axis, word in axes.items():
            if sizes[name][axis].HasField("dim_value"):
                raise ModelError(
                    f"the {word} of input {name} cannot stay free: the file fixes it at "
                    f"{sizes[name][axis].dim_value}"
                )


def rebatched(batches: Sequence[Arrays], size: int) -> list[Arrays]:
    """The same inputs in batches of ``size``; rows that fill none are left out."""
    return [
        {name: value[start : start + size] for name, value in batch.items()}
        for batch in batches
        for start in range(0, len(next(iter(batch.values()))) - size + 1, size)
    ]
