"""What a deployed network scores by its task: measured on the artifact, not on the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, usable_cores
from prunekit.exporting import live_artifact
from prunekit.exporting.inputs import named_inputs
from prunekit.pipeline.job import Job
from prunekit.report.schema import AccuracyPart, ScorePart
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import Arrays, Engine
from prunekit.support.errors import DataError
from prunekit.support.progress import track
from prunekit.train import Data, loader

Scores = dict[str, float]
"""A file's metrics by key."""


def deployed_scores(job: Job, module: nn.Module, onnx: Path) -> Scores | None:
    """All metrics in the precision it is deployed in, of the file where that runs.

    None without data. The file's own precision is in it, so that any runtime tells.
    """
    target = None
    artifact: Path | Artifact = onnx
    if job.target.precision != "fp32" and job.runtime.casts:
        target = replace(job.target, threads=usable_cores())
        if job.runtime.artifact_format == "module":
            artifact = live_artifact(module, job.example)
    return file_scores(artifact, job.data, job.recipe.workers, target)


def file_accuracy(
    file: Path | Artifact, data: Data | None, workers: int = 0, target: Target | None = None
) -> float | None:
    """The primary metric of a file or live module on the validation set; None without data.

    Top-1 for a classification. ``target`` is ONNX Runtime on all cores unless given.
    """
    if data is None:
        return None
    scores = file_scores(file, data, workers, target, brief=True)
    return None if scores is None else scores[data.task.primary.key]


def file_scores(
    file: Path | Artifact,
    data: Data | None,
    workers: int = 0,
    target: Target | None = None,
    *,
    brief: bool = False,
) -> Scores | None:
    """The metrics of a file or live module, run on ``target``; of a ``brief`` one the primary."""
    if data is None:
        return None
    target = target or Target.parse("onnxruntime:cpu", threads=usable_cores())
    artifact = file if isinstance(file, Artifact) else Artifact.of_file(file)
    name = Path(artifact.path).name or f"the network on {target}"
    fixed = _fixed_batch(artifact)
    if fixed is not None:
        target = replace(target, batch=fixed)
    named = _naming(artifact)
    engine = runtime_for(target).load(artifact, target)
    task, scorer, count = data.task, data.task.scorer(brief=brief), 0
    try:
        batches = loader(data.val, 256, workers=workers, collate=task.collate)
        for inputs, targets in track(batches, f"{task.primary.name} of {name}", len(batches)):
            outputs = _outputs(engine, named(inputs), fixed)
            scorer.update(task.outputs_of(outputs), targets)
            count += 1
    finally:
        engine.close()
    if not count:
        raise DataError(f"the validation set of {data.name} is empty")
    return scorer.compute()


def accuracy_part(data: Data | None, dense: Scores | None, pruned: Scores | None) -> AccuracyPart:
    """Both files' metrics; None where there is no data, or random weights."""
    if data is None:
        return AccuracyPart(dense=None, pruned=None)

    def of(scores: Scores | None, key: str) -> float | None:
        return None if scores is None else scores[key]

    first, *others = data.task.metrics
    return AccuracyPart(
        dense=of(dense, first.key),
        pruned=of(pruned, first.key),
        metric=first.name,
        unit=first.unit,
        higher_is_better=first.higher_is_better,
        task=data.task.name,
        others=tuple(
            ScorePart(
                dense=of(dense, metric.key),
                pruned=of(pruned, metric.key),
                metric=metric.name,
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
            )
            for metric in others
        ),
    )


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


def _naming(artifact: Artifact) -> Callable[[Any], Arrays]:
    """What names the tensors of a batch as the artifact has them, several of them by order."""
    names: list[str] = []
    if artifact.format == "onnx":
        names = [i.name for i in onnx.load(artifact.path, load_external_data=False).graph.input]

    def named(inputs: Any) -> Arrays:
        tensors = named_inputs(tuple(inputs) if isinstance(inputs, list) else inputs)
        if names and not isinstance(inputs, Mapping) and len(names) == len(tensors):
            tensors = dict(zip(names, tensors.values(), strict=True))
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    return named


def _outputs(engine: Engine, inputs: Arrays, size: int | None) -> Sequence[NDArray[Any]]:
    """The outputs for a batch, run in batches of ``size`` where that is set, the last filled up."""
    count = len(next(iter(inputs.values())))
    step = size or count
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, count, step):
        batch = {name: _filled(value[start : start + step], step) for name, value in inputs.items()}
        left_over = min(step, count - start)
        parts.append([np.asarray(output)[:left_over] for output in engine.run(batch)])
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
