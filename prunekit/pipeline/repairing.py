"""The slim network of a run, repaired as the recipe says, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import nn

from prunekit.core.plan import ChannelPlan
from prunekit.networks.slimming import slim
from prunekit.pipeline.job import Job
from prunekit.pipeline.run import Run
from prunekit.pruning.repair import Repaired, repair
from prunekit.report.schema import RepairPart, RepairRow
from prunekit.support.errors import UsageError
from prunekit.support.progress import say
from prunekit.support.stopwatch import stages
from prunekit.train import evaluate
from prunekit.train.batches import loader

BATCH = 64
"""Images that are read at once."""


def slimmed(run: Run, plan: ChannelPlan) -> tuple[nn.Module, RepairPart | None]:
    """The dense network without what ``plan`` removes, repaired; what was done, where it was."""
    job = run.job
    small = slim(job.module, plan)
    method = job.recipe.resolved_repair()
    if method == "none" or plan.is_dense:
        return small, None
    batches = inputs_of(job)
    example = None if batches is not None else job.example
    with stages.stage("repair"):
        fixed = repair(job.module, small, plan, batches, method=method, example=example)
    _say(fixed)
    part = RepairPart(
        method=fixed.method,
        images=fixed.images,
        layers=len(fixed.layers),
        left=fixed.left,
        rows=(
            RepairRow(what="right after slimming", distance=fixed.before, **_score(job, small)),
            RepairRow(
                what="repaired",
                distance=fixed.after,
                seconds=round(fixed.seconds, 2),
                **_score(job, fixed.network),
            ),
        ),
    )
    return fixed.network, part


def inputs_of(job: Job) -> Iterator[Any] | None:
    """Batches of inputs: of images without labels, or of the training set; None without any."""
    recipe = job.recipe
    if job.images is not None:
        batches = loader(job.images, BATCH, recipe.seed, workers=recipe.workers)
    elif job.data is not None:
        batches = job.data.train_batches(BATCH, recipe.seed, workers=recipe.workers)
    else:
        return None
    return (inputs for inputs, _ in batches)


def scoring_inputs(job: Job, count: int) -> Iterator[Any]:
    """The first ``count`` batches of :func:`inputs_of`."""
    batches = inputs_of(job)
    if batches is None:
        raise UsageError("there are no images; add --data images:PATH")
    return islice(batches, count)


def trained(part: RepairPart | None, score: float, seconds: float) -> RepairPart | None:
    """The same with what the network scores after its training."""
    if part is None:
        return None
    row = RepairRow(what="after training", score=score, seconds=round(seconds, 2))
    return part.model_copy(update={"rows": (*part.rows, row)})


def _score(job: Job, network: nn.Module) -> dict[str, float]:
    """Where there are labels."""
    if job.data is None:
        return {}
    return {"score": evaluate(network, job.data.val, task=job.data.task, device=job.recipe.device)}


def _say(fixed: Repaired) -> None:
    if fixed.before is not None and fixed.after is not None:
        say(
            f"repaired by {fixed.method} with {fixed.images} images: outputs {fixed.before:.3f} "
            f"from the dense network's, {fixed.after:.3f} now"
        )
    else:
        say(f"repaired by {fixed.method}, without images: {len(fixed.layers)} layers")
    short = fixed.short_of_images
    if short is not None:
        say(f"note: {short[0]} has more unknowns than positions; {short[1]} images would do")
    if fixed.left:
        name, why = next(iter(fixed.left.items()))
        say(f"note: {len(fixed.left)} layers stay as they are, {name} first: {why}", 1)
