"""ONNX files in the precision that they are deployed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.half import peaks_of, to_half
from prunekit.exporting.int8 import Quantiser, quantise
from prunekit.runtimes.base import Arrays, Runtime, file_precision, timing_inputs
from prunekit.support.errors import UsageError
from prunekit.support.files import replacing

PRECISIONS = ("fp32", "fp16", "int8")
"""What ONNX files can be written in."""


def check_known(precision: str) -> None:
    """Refuse a precision that no ONNX file is written in."""
    if precision not in PRECISIONS:
        raise UsageError(f"ONNX files are written in {', '.join(PRECISIONS)}, not {precision}")


def lower(
    source: Artifact, path: str | Path, precision: str, batches: Sequence[Arrays], runtime: str
) -> Artifact:
    """The fp32 ONNX file ``source`` in ``precision`` at ``path``; nothing is compared.

    ``batches`` are the inputs that ranges are taken from: what overflows in fp16 stays in fp32, and
    int8 is scaled to them. ``runtime`` is whom an int8 file is for.
    """
    with replacing(path) as temporary:
        if precision == "int8":
            quantise(source.path, temporary, batches, Quantiser.for_runtime(runtime))
        else:
            peaks = peaks_of(source.path, batches) if batches else {}
            onnx.save(to_half(onnx.load(source.path), peaks), str(temporary))
    return replace(source, path=str(path), precision=precision, sha256="")


def lowered_for(source: Artifact, runtime: Runtime, target: Target, path: str | Path) -> Artifact:
    """``source`` in the precision that ``target`` computes in, for timing only.

    Ranges come from noise: kernels take as long whatever the scales are.
    """
    precision = file_precision(runtime, target)
    if precision == "fp32" or source.format != "onnx":
        return source
    batches = [timing_inputs(source, replace(target, batch=2))]
    lowered = lower(source, path, precision, batches if precision == "int8" else (), runtime.name)
    return Artifact.of_file(path, precision=precision, input_shapes=lowered.input_shapes)
