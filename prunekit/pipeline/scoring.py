"""Which criterion a job scores by, and the scores of its dense network."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, lifted
from prunekit.core.scores import Scores
from prunekit.criteria import Accumulator, Criterion, InputCriterion, score
from prunekit.networks.running import evaluating
from prunekit.networks.slimming import graph_of
from prunekit.pipeline.job import Job
from prunekit.pipeline.repairing import scoring_inputs
from prunekit.support.errors import UsageError
from prunekit.support.registry import criteria


def criterion_of(job: Job) -> Criterion:
    """The recipe's criterion; one that needs gradients needs data."""
    criterion: Criterion = criteria.make(job.recipe.resolved_criterion())
    if needs_inputs(criterion) and job.data is None and job.images is None:
        raise UsageError(f"--criterion {criterion.name} needs images; add --data images:PATH")
    if criterion.needs_gradients and job.data is None:
        raise UsageError(
            f"--criterion {criterion.name} needs data; add --data (digits, imagefolder:PATH, ...)"
        )
    return criterion


def check_gradients(job: Job, criterion: Criterion) -> None:
    """Raise UsageError where training would give ``criterion`` no gradients of what it reads."""
    if needs_inputs(criterion):
        raise UsageError(
            f"--criterion {criterion.name} scores a network once, before any training; add "
            "--method oneshot"
        )
    if not criterion.needs_gradients:
        return
    network = copy.deepcopy(job.module)
    with evaluating(network), torch.enable_grad():
        output = network(job.example[:1])
        if isinstance(output, torch.Tensor) and output.requires_grad:
            torch.autograd.backward(output.sum())
            Accumulator(job.graph, criterion).add(network)


def dense_scores(job: Job, criterion: Criterion) -> Scores:
    """One-shot scores of the dense network."""
    return _scores(job, job.module, job.graph, criterion)


def slim_scores(job: Job, criterion: Criterion, small: nn.Module, plan: ChannelPlan) -> Scores:
    """One-shot scores of ``small``, which ``plan`` left, in the dense network's channels."""
    inside = graph_of(small, job.graph, plan)
    return lifted(_scores(job, small, inside, criterion), plan)


def _scores(job: Job, module: nn.Module, graph: ChannelGraph, criterion: Criterion) -> Scores:
    data, recipe = job.data, job.recipe
    if needs_inputs(criterion):
        return score(module, graph, criterion, batches=scoring_inputs(job, recipe.score_batches))
    if data is None or not criterion.needs_gradients:
        return score(module, graph, criterion)
    torch.manual_seed(recipe.seed)
    batches = data.train_batches(recipe.batch_size, recipe.seed)
    count = min(recipe.score_batches, len(batches))
    chosen = (batch for batch, _ in zip(batches, range(count), strict=False))
    return score(module, graph, criterion, data.task.loss_of, chosen)


def needs_inputs(criterion: Criterion) -> bool:
    """Whether it goes by what layers read."""
    return isinstance(criterion, InputCriterion) and criterion.needs_inputs
