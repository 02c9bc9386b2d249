"""One interface for all criteria, and the accumulation of their scores over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGraph, ChannelGroup, Member
from prunekit.core.plan import check_same
from prunekit.core.role import OUT
from prunekit.core.scores import Scores
from prunekit.criteria.inputs import InputCriterion, score_by_inputs
from prunekit.networks.running import evaluating
from prunekit.networks.slimming import model_fingerprint
from prunekit.support.errors import UsageError


class Criterion(Protocol):
    """Computes a non-negative score per channel from the weights and, if needed, the gradients."""

    @property
    def name(self) -> str:
        """What it is called in scores and reports."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether it needs a backward pass; otherwise the weights alone tell."""
        ...

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Scores of one group, shape (size,), for the present weights and gradients."""
        ...

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of one group made comparable with other groups', after averaging."""
        ...


@runtime_checkable
class WeightCriterion(Protocol):
    """A criterion that scores single weights too."""

    @property
    def name(self) -> str:
        """What it is called in scores and reports."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether it needs a backward pass; otherwise the weights alone tell."""
        ...

    def weight_scores(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Non-negative scores of the weights of layer ``name``, of the weight's shape."""
        ...


class Accumulator:
    """Averages a criterion's scores over batches; every backward pass adds one."""

    def __init__(self, graph: ChannelGraph, criterion: Criterion) -> None:
        self.graph = graph
        self.criterion = criterion
        self.batches = 0
        self.sums = {g.id: np.zeros(g.size, dtype=np.float64) for g in graph.groups if g.prunable}

    def add(self, model: nn.Module) -> bool:
        """Add the scores of ``model`` as it is now (with the last batch's gradients).

        False, and nothing added, where they are not finite: mixed precision lets gradients
        overflow now and then.
        """
        modules = dict(model.named_modules())
        with torch.no_grad():
            batch_scores = {
                group.id: self.criterion.channel_scores(group, modules).double().cpu().numpy()
                for group in self.graph.groups
                if group.prunable
            }
        if not all(np.isfinite(values).all() for values in batch_scores.values()):
            return False
        for group, values in batch_scores.items():
            self.sums[group] += values
        self.batches += 1
        return True

    def resume(self, batches: int, sums: Mapping[str, NDArray[np.float64]]) -> None:
        """Go on from what another one had added."""
        self.batches = batches
        for group in self.sums:
            self.sums[group] = np.array(sums[group])

    def reset(self) -> None:
        """Forget everything added so far."""
        self.batches = 0
        for values in self.sums.values():
            values[:] = 0

    def scores(self) -> Scores:
        """The averages, normalised as the criterion says."""
        if not self.batches:
            raise UsageError("no batch was scored")
        means = {
            group: self.criterion.normalised(values / self.batches)
            for group, values in self.sums.items()
        }
        return Scores(means, self.criterion.name, self.batches)


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: Criterion,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batches: Iterable[Any] | None = None,
) -> Scores:
    """Scores of every prunable channel; gradients are averaged per batch in evaluation mode.

    ``loss_fn(model, batch)`` gives a scalar. Of a criterion that goes by what layers read, such as
    `Reconstruction`, ``batches`` are inputs alone. Weights, statistics and training mode of
    ``model`` are left as they were, and so are gradients that it already has.
    """
    check_same(graph.fingerprint, model_fingerprint(model), type(model).__name__, "graph")
    if isinstance(criterion, InputCriterion) and criterion.needs_inputs:
        if batches is None:
            raise UsageError(f"criterion {criterion.name!r} needs inputs: give `batches` of them")
        return score_by_inputs(model, graph, criterion, batches)
    total = Accumulator(graph, criterion)
    if not criterion.needs_gradients:
        _add(total, model)
        return total.scores()
    if loss_fn is None or batches is None:
        raise UsageError(
            f"criterion {criterion.name!r} needs data: give `loss_fn` and `batches`, "
            "or use the criterion magnitude"
        )
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(parameter.is_floating_point())
        with evaluating(model):
            for batch in batches:
                model.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
                _add(total, model)
    finally:
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
    return total.scores()


def _add(total: Accumulator, model: nn.Module) -> None:
    if not total.add(model):
        raise UsageError(
            f"{total.criterion.name} scores are not finite; check the loss and the weights for NaN"
        )


# --- what criteria are made of ----------------------------------------------------------------

REDUCE = ("mean", "sum", "max")
"""How the scores of coupled layers, which share their channels, become one."""

NORMALIZE = ("mean", "max", "share", "none")
"""What the scores of a group are divided by; see :func:`normalise`."""


def check_option(criterion: str, option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a ``value`` that is none of ``allowed``."""
    if value not in allowed:
        *others, last = map(str, allowed)
        raise UsageError(
            f"criterion {criterion}: `{option}` must be {', '.join(others)} or {last}, "
            f"not {value!r}"
        )


def writers(group: ChannelGroup, modules: dict[str, nn.Module]) -> list[tuple[Member, Tensor]]:
    """The layers that write the group's channels (depthwise ones too), with their weights."""
    layers = []
    for member in group.members:
        weight = getattr(modules[member.module], "weight", None)
        if member.role.is_output and weight is not None and weight.ndim >= 2:
            layers.append((member, weight))
    if not layers:
        raise UsageError(
            f"no layer with a weight writes the channels of group {group.id!r}, so they cannot "
            "be scored; trace this model again"
        )
    return layers


def filters(values: Tensor, member: Member, module: nn.Module) -> Tensor:
    """All of a weight (or its gradient) that belongs to each channel, shape (size, elements)."""
    index = torch.from_numpy(member.index).to(values.device)
    return outputs_first(values.detach().float(), module).flatten(1)[index].flatten(1)


def outputs_first(values: Tensor, module: nn.Module) -> Tensor:
    """The weight of ``module`` (or its gradient) with the axis of its outputs in front."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1:
        return values.transpose(0, 1)
    return values


def weights(group: ChannelGroup, modules: dict[str, nn.Module]) -> list[Tensor]:
    """The filters of every writer, each of shape (size, elements)."""
    return [
        filters(weight, member, modules[member.module])
        for member, weight in writers(group, modules)
    ]


def alive(layers: Sequence[Tensor]) -> Tensor:
    """Which channels have a filter that is not all zero, in any layer; shape (size,)."""
    return torch.stack([(rows != 0).any(dim=1) for rows in layers]).any(dim=0)


def gradient(value: Tensor, name: str) -> Tensor:
    """The gradient of the parameter called ``name``."""
    if value.grad is None:
        raise no_gradient(value, name)
    return value.grad


def no_gradient(value: Tensor, name: str) -> UsageError:
    """What to say where the parameter called ``name`` has none."""
    why = "it is not trained (`requires_grad` is off)"
    if value.requires_grad:
        why = "there was no backward pass, or it is computed from other parameters"
    return UsageError(f"no gradient for {name}, which Taylor scores need: {why}")


def gates(group: ChannelGroup, modules: dict[str, nn.Module]) -> tuple[list[Member], float]:
    """The BatchNorms that scale the group's channels, and what a sum over them is to weigh.

    The norm behind a depthwise layer scales the same channel once more, in series: where one
    layer writes the channels the last norm stands for all.
    """
    norms = [member for member in group.members if is_affine_norm(modules[member.module])]
    outs = [member for member in group.members if member.role == OUT]
    depthwise = [member for member in group.members if _is_depthwise(modules[member.module])]
    if not depthwise or not norms:
        return norms, 1.0
    if len(outs) == 1:
        return norms[-1:], 1.0
    return norms, len(outs) / (len(outs) + len(depthwise))


def is_affine_norm(module: nn.Module) -> bool:
    """Whether this is a BatchNorm with a scale and a shift."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def per_channel(values: Tensor, member: Member) -> Tensor:
    """Sum ``values`` (one per position of the member's axis) over each channel's positions."""
    index = torch.from_numpy(member.index).to(values.device)
    return values[index].sum(dim=1)


def reduced(parts: Sequence[Tensor], reduction: str) -> Tensor:
    """One score per channel from one per layer and channel; ``reduction`` is one of ``REDUCE``."""
    stacked = torch.stack(tuple(parts))
    if reduction == "max":
        return stacked.amax(dim=0)
    return stacked.mean(dim=0) if reduction == "mean" else stacked.sum(dim=0)


def normalise(scores: NDArray[np.float64], norm: str) -> NDArray[np.float64]:
    """Scores over their mean or largest, or as shares; removed channels, at zero, weigh nothing.

    Without that, a group's live channels would seem better the more of the others are gone. A
    ``share`` is the score over the sum of the group's scores that are at least as large: what the
    channel adds to all that would outlive it (LAMP's normalisation, arXiv 2010.07611). Sums of
    shares grow as a logarithm of the width, so that no group is starved for another.

    Examples:
        >>> normalise(np.array([1.0, 3.0, 0.0]), "mean")
        array([0.5, 1.5, 0. ])
    """
    present = scores[scores > 0]
    if norm == "none" or not present.size:
        return scores
    if norm == "share":
        return shares(scores)
    return scores / float(present.mean() if norm == "mean" else present.max())


def shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each score over the sum of all that are at least as large, shape (size,); zeros stay."""
    levels, where, count = np.unique(scores, return_inverse=True, return_counts=True)
    at_least = np.cumsum((levels * count)[::-1])[::-1]
    return scores / np.where(scores > 0, at_least[where], 1.0)
