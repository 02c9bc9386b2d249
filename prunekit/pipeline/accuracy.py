"""What a deployed network scores: measured on the artifact itself, not on the module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, usable_cores
from prunekit.exporting import live_artifact
from prunekit.pipeline.job import Job
from prunekit.runtimes import runtime_for
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
    engine = runtime_for(target).load(artifact, target)
    right = seen = 0
    try:
        batches = loader(data.val, 256, workers=workers)
        for images, labels in track(batches, f"accuracy of {name}", len(batches)):
            (output, *_) = engine.run({"input": images.numpy()})
            logits = logits_of(torch.as_tensor(np.asarray(output, np.float32)), data.num_classes)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    finally:
        engine.close()
    if not seen:
        raise DataError(f"the validation set of {data.name} is empty")
    return right / seen
