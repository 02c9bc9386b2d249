"""The report of a finished run, from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from prunekit.allocation import explain
from prunekit.core.artifact import Artifact
from prunekit.core.budget import Budget
from prunekit.core.run_folder import DENSE, LOG, ONNX, RunFolder
from prunekit.core.scores import Scores
from prunekit.core.target import Target, package_version, usable_cores
from prunekit.latency import LatencyTable
from prunekit.measuring.bench import BenchResult
from prunekit.pipeline.landing import Landing
from prunekit.report import Report, read_log
from prunekit.report.schema import (
    AccuracyPart,
    AllocationPart,
    AttemptPart,
    BudgetPart,
    GroupPart,
    LatencyPart,
    Pair,
    TablePart,
    TrainingPart,
)
from prunekit.runtimes import runtime_for
from prunekit.support.errors import DataError
from prunekit.support.files import sha256_file
from prunekit.support.progress import track
from prunekit.train import Data, loader
from prunekit.train.evaluating import logits_of

if TYPE_CHECKING:
    from prunekit.pipeline.job import Job

CONFIDENCE = 0.95


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
            (found, *_) = engine.run({"input": images.numpy()})
            logits = logits_of(torch.as_tensor(np.asarray(found, np.float32)), data.num_classes)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    finally:
        engine.close()
    if not seen:
        raise DataError(f"the validation set of {data.name} is empty")
    return right / seen


def make_report(
    *,
    job: Job,
    folder: RunFolder,
    landing: Landing,
    table: LatencyTable,
    timed: BenchResult,
    budget: Budget,
    target_ratio: float,
    met: bool,
    trained: dict[str, Any],
    pruning_epochs: int,
    accuracy: tuple[float | None, ...],
    small: nn.Module,
    scores: Scores,
) -> Report:
    """Put the pieces together; ``met`` was decided on what ``timed`` measured."""
    graph, recipe, allocation = job.graph, job.recipe, landing.allocation
    run = folder.path
    dense_time, pruned_time = timed.measurements
    ratio = timed.ratios[0]
    files = folder.artifacts()
    limit_ms = target_ratio * dense_time.median_ms if budget.relative else budget.value
    epochs, updates = read_log(run / LOG)
    return Report(
        model=recipe.model,
        target=job.target,
        environment=timed.environment,
        budget=BudgetPart(kind=budget.kind, requested=str(budget), limit_ms=limit_ms),
        latency=LatencyPart(
            dense_ms=dense_time.median_ms,
            pruned_ms=pruned_time.median_ms,
            dense_ci_ms=dense_time.interval(CONFIDENCE),
            pruned_ci_ms=pruned_time.interval(CONFIDENCE),
            ratio=ratio.ratio,
            ratio_ci=(ratio.low, ratio.high),
            confidence=ratio.confidence,
            rounds=ratio.rounds,
            predicted_ms=allocation.cost,
            limit_ratio=target_ratio,
            met=met,
        ),
        accuracy=AccuracyPart(dense=accuracy[0], pruned=accuracy[1]),
        macs=Pair(dense=graph.macs({}), pruned=graph.macs(allocation.widths)),
        params=Pair(dense=_parameters(job.module), pruned=_parameters(small)),
        memory=Pair(dense=graph.memory({}), pruned=graph.memory(allocation.widths)),
        file_bytes=Pair(dense=(run / DENSE).stat().st_size, pruned=(run / ONNX).stat().st_size),
        training_cost=_training_cost(job, landing, trained, pruning_epochs),
        allocation=AllocationPart(
            solver=allocation.solver,
            gap=allocation.gap,
            status=allocation.status,
            value=allocation.value,
            method=recipe.resolved_method(),
            criterion=recipe.resolved_criterion(),
            granularity=recipe.granularity or table.granularity,
        ),
        landing=tuple(
            AttemptPart(
                asked=a.asked,
                predicted=a.predicted,
                ratio=a.ratio,
                ratio_ci=(a.low, a.high),
                chosen=a.widths == allocation.widths,
            )
            for a in landing.attempts
        ),
        table=TablePart(
            source=table.protocol.source,
            nets=table.protocol.nets,
            rounds=table.protocol.rounds,
            **table.calibration.errors,
        ),
        widths={
            group.id: (group.size, allocation.widths[group.id])
            for group in graph.groups
            if group.prunable
        },
        groups={
            name: GroupPart(
                before=group.before,
                after=group.after,
                saliency=group.saliency,
                saved_ms=group.saved,
                at_minimum=group.at_minimum,
            )
            for name, group in explain(
                graph, allocation.plan, table, scores, recipe.granularity
            ).items()
        },
        frozen={group.id: group.reason for group in graph.groups if not group.prunable},
        artifacts=files,
        digests={what: sha256_file(files[what]) for what in ("dense", "onnx")},
        seed=recipe.seed,
        recipe=recipe.model_dump(exclude_none=True),
        versions=versions(),
        epochs=epochs,
        updates=updates,
    )


def versions() -> dict[str, str]:
    """Of the packages that decide what a run gives."""
    return {name: package_version(name) for name in ("prunekit", "torch", "onnx", "onnxruntime")}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _training_cost(
    job: Job, landing: Landing, trained: dict[str, Any], pruning_epochs: int
) -> TrainingPart:
    """FLOPs relative to a dense run of ``dense_epochs`` (else ``epochs``), and seconds.

    Forward and backward count three forwards, a teacher's forward one; masked training counts as
    dense, which it is.
    """
    recipe = job.recipe
    work = trained.pop("work")
    seconds = {stage: (result or {}).get("seconds", 0.0) for stage, result in trained.items()}
    reference = recipe.dense_epochs or recipe.epochs
    relative = None
    if job.data is not None and reference:
        share = job.graph.macs(landing.allocation.widths) / job.graph.macs({})
        fine_tuned = recipe.epochs - pruning_epochs
        spent = pruning_epochs + share * fine_tuned if work is None else work
        if recipe.distill:
            spent += recipe.epochs / 3
        relative = (spent + (reference if recipe.dense_training else 0)) / reference
    return TrainingPart(
        relative_flops=relative,
        seconds=sum(seconds.values()),
        dense_seconds=seconds["dense"],
    )
