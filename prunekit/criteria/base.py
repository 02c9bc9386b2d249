"""One interface for all criteria, and the accumulation of their scores over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.errors import UsageError
from prunekit.graph import ChannelGraph, ChannelGroup, Member
from prunekit.scores import Scores


class Criterion(Protocol):
    """Computes a non-negative score per channel from the weights and, if needed, the gradients."""

    name: str
    needs_gradients: bool

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Scores of one group, shape (size,), for the present weights and gradients."""
        ...

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of one group made comparable with other groups', after averaging."""
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
            found = {
                group.id: self.criterion.channel_scores(group, modules).double().cpu().numpy()
                for group in self.graph.groups
                if group.prunable
            }
        if not all(np.isfinite(values).all() for values in found.values()):
            return False
        for group, values in found.items():
            self.sums[group] += values
        self.batches += 1
        return True

    def reset(self) -> None:
        """Forget everything added so far."""
        self.batches = 0
        for values in self.sums.values():
            values[:] = 0

    def scores(self) -> Scores:
        """The averages, normalised as the criterion says."""
        if not self.batches:
            raise UsageError("no batch was scored")
        found = {
            group: self.criterion.normalised(values / self.batches)
            for group, values in self.sums.items()
        }
        return Scores(found, self.criterion.name, self.batches)


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: Criterion,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batches: Iterable[Any] | None = None,
) -> Scores:
    """Scores of every prunable channel; gradients are averaged per batch in evaluation mode.

    ``loss_fn(model, batch)`` gives a scalar. Weights, statistics and training mode of ``model``
    are left as they were, and so are gradients that it already has.
    """
    total = Accumulator(graph, criterion)
    if not criterion.needs_gradients:
        _add(total, model)
        return total.scores()
    if loss_fn is None or batches is None:
        raise UsageError(
            f"criterion {criterion.name!r} needs data: give `loss_fn` and `batches`, "
            "or use the criterion magnitude"
        )
    modes = [(module, module.training) for module in model.modules()]
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval()
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(parameter.is_floating_point())
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
            _add(total, model)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
    return total.scores()


def _add(total: Accumulator, model: nn.Module) -> None:
    if not total.add(model):
        raise UsageError(
            f"{total.criterion.name} scores are not finite; check the loss and the weights for NaN"
        )


def per_channel(values: Tensor, member: Member) -> Tensor:
    """Sum ``values`` (one per position of the member's axis) over each channel's positions."""
    index = torch.from_numpy(member.index).to(values.device)
    return values[index].sum(dim=1)
