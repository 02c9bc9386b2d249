"""What layers read, summed up over batches without labels, for criteria that go by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGraph, ChannelGroup
from prunekit.core.scores import Scores
from prunekit.networks.products import Product, Watch
from prunekit.networks.running import evaluating
from prunekit.support.errors import UsageError
from prunekit.tasks.base import run

ROWS = 4096
"""Positions of every batch that a layer's inputs are counted at."""
WIDEST = 2048
"""Inputs of a layer up to which all pairs of them are counted."""


@dataclass(eq=False)
class Moments:
    """Sums over what a layer reads, channel by channel (all positions of its window alike)."""

    rows: int
    sums: Tensor
    squares: Tensor
    """Of all pairs, (inputs, inputs); of wide layers of each with itself, (inputs,)."""

    def add(self, rows: Tensor) -> None:
        """Add (rows, inputs)."""
        values = rows.double()
        self.rows += len(values)
        self.sums += values.sum(0)
        self.squares += values.T @ values if self.squares.ndim == 2 else values.square().sum(0)

    @property
    def covariance(self) -> Tensor:
        """Of all pairs, or the variances alone."""
        mean = self.sums / self.rows
        if self.squares.ndim == 2:
            return self.squares / self.rows - torch.outer(mean, mean)
        return (self.squares / self.rows - mean.square()).clamp(min=0)


@runtime_checkable
class InputCriterion(Protocol):
    """A criterion that scores by what layers read; no labels and no gradients."""

    @property
    def name(self) -> str:
        """What it is called in scores and reports."""
        ...

    @property
    def needs_inputs(self) -> bool:
        """Whether it does."""
        ...

    def scores_by_inputs(
        self, group: ChannelGroup, modules: dict[str, nn.Module], moments: Mapping[str, Moments]
    ) -> Tensor:
        """Scores of one group, shape (size,), by the moments of what layers read."""
        ...

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of one group made comparable with other groups'."""
        ...


class _Counting(Watch):
    """Sums up what every layer reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.moments: dict[str, Moments] = {}

    def product(self, product: Product, compute: Any) -> Any:
        inputs = product.input.detach()
        if not product.is_linear:
            axis = inputs.ndim - product.weight.ndim + 1
            inputs = inputs.movedim(axis, -1)
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) > ROWS:
            rows = rows[torch.linspace(0, len(rows) - 1, ROWS, device=rows.device).long()]
        width = rows.shape[1]
        if product.layer not in self.moments:
            shape = (width, width) if width <= WIDEST else (width,)
            zeros = torch.zeros(shape, dtype=torch.float64, device=rows.device)
            self.moments[product.layer] = Moments(0, zeros.new_zeros(width), zeros)
        self.moments[product.layer].add(rows)
        return compute()


def score_by_inputs(
    model: nn.Module, graph: ChannelGraph, criterion: InputCriterion, batches: Iterable[Any]
) -> Scores:
    """Scores of every prunable channel by what layers read of ``batches``, which are inputs."""
    counting, count = _Counting(model), 0
    with torch.no_grad(), evaluating(model):
        for inputs in batches:
            with counting:
                run(model, inputs)
            count += 1
    if not count:
        raise UsageError("no batch was scored")
    modules = dict(model.named_modules())
    scores = {
        group.id: criterion.scores_by_inputs(group, modules, counting.moments).cpu().numpy()
        for group in graph.groups
        if group.prunable
    }
    normalised = {group: criterion.normalised(values) for group, values in scores.items()}
    return Scores(normalised, criterion.name, count)
