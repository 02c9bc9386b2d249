"""What a deployed network scores: measured on the artifact itself, not on the module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, usable_cores
from prunekit.exporting import live_artifact
from prunekit.pipeline.job import Job
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import Engine
from prunekit.support.errors import DataError
from prunekit.support.progress import track
from prunekit.train import Data, loader
from prunekit.train.evaluating import logits_of


def deployed_accuracy(job: Job, module: nn.Module, onnx: Path) -> float | None:
    """Top-1 in the precision it is deployed in, of the file where that runs; None without data.

    The file's own precision is in it, so that any runtime tells.
    """
    target = None
    what: Path | Artifact = onnx
    if job.target.precision != "fp32" and job.runtime.casts:
        target = replace(job.target, threads=usable_cores())
        if job.runtime.artifact_format == "module":
            what = live_artifact(module, job.example)
    return file_accuracy(what, job.data, job.recipe.workers, target)


def file_accuracy(
    what: Path | Artifact, data: Data | None, workers: int = 0, target: Target | None = None
) -> float | None:
    """Top-1 of a file or live module on the validation set, run on ``target``; None without data.

    ``target`` is ONNX Runtime on all cores unless given.
    """
    if data is None:
        return None
    target = target or Target.parse("onnxruntime:cpu", threads=usable_cores())
    artifact = what if isinstance(what, Artifact) else Artifact.of_file(what)
    name = Path(artifact.path).name or f"the network on {target}"
    fixed = _fixed_batch(artifact)
    if fixed is not None:
        target = replace(target, batch=fixed)
    engine = runtime_for(target).load(artifact, target)
    right = seen = 0
    try:
        batches = loader(data.val, 256, workers=workers)
        for images, labels in track(batches, f"accuracy of {name}", len(batches)):
            output = _first_output(engine, images.numpy(), fixed or len(images))
            logits = logits_of(torch.as_tensor(np.asarray(output, np.float32)), data.num_classes)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    finally:
        engine.close()
    if not seen:
        raise DataError(f"the validation set of {data.name} is empty")
    return right / seen


def _fixed_batch(artifact: Artifact) -> int | None:
    """The one batch that an ONNX file takes; None where it takes any."""
    if artifact.format != "onnx":
        return None
    shapes = artifact.input_shapes
    if not shapes:
        proto = onnx.load(artifact.path, load_external_data=False)
        dims = (value.type.tensor_type.shape.dim for value in proto.graph.input)
        shapes = {str(n): (d[0].dim_value or -1,) for n, d in enumerate(dims) if len(d)}
    sizes = next(iter(shapes.values()), (-1,))
    return sizes[0] if sizes[0] > 0 else None


def _first_output(engine: Engine, images: NDArray[Any], size: int) -> NDArray[Any]:
    """The first output for all images, run in batches of ``size``, the last one filled up."""
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padding = np.repeat(part[-1:], size - len(part), axis=0)
        (output, *_) = engine.run({"input": np.concatenate([part, padding])})
        parts.append(np.asarray(output)[: len(part)])
    return np.concatenate(parts)
