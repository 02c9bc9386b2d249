"""The layers of a sparse training: which are sparse, and how many weights each of them keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.core.density import counts, parse_sparsity
from prunekit.core.sparsity import SparseLayer, SparsityPlan
from prunekit.networks.weight_layers import Layer, find_layers
from prunekit.sparsify.settings import Settings
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class SparseLayers:
    """All layers that can be sparse, and of those that are to be, name, weight and target."""

    every: list[Layer]
    names: list[str]
    weights: list[Tensor]
    target: list[int]
    """Weights that each sparse layer keeps, as the distribution says."""

    @property
    def sizes(self) -> list[int]:
        """Weights of each sparse layer."""
        return [weight.numel() for weight in self.weights]

    def norms(self) -> list[float]:
        """The norm of every sparse weight, by which the model of a state is known again."""
        return [float(weight.detach().double().norm()) for weight in self.weights]

    def plan(self, kept: Sequence[int], settings: Settings, method: str) -> SparsityPlan:
        """The structure with so many weights in each sparse layer."""
        by_name = dict(zip(self.names, kept, strict=True))
        pattern = settings.pattern
        return SparsityPlan(
            layers=tuple(
                SparseLayer(
                    layer.name,
                    layer.shape.shape,
                    by_name.get(layer.name, layer.shape.size),
                    layer.dense,
                )
                for layer in self.every
            ),
            pattern=str(pattern),
            distribution=str(pattern) if pattern.structured else settings.distribution,
            method=method,
            criterion=settings.criterion.name,
        )

    @torch.no_grad()
    def check_zeros(self, active: Sequence[Tensor], maker: str) -> None:
        """Refuse weights that somebody else has changed since ``maker`` masked them."""
        for name, weight, on in zip(self.names, self.weights, active, strict=True):
            if torch.count_nonzero(weight) > torch.count_nonzero(weight[on.to(weight.device)]):
                raise UsageError(
                    f"inactive weights of {name} are no longer zero: they were loaded or set after "
                    f"{maker} was made; load them before, or call `load_state` after"
                )

    def check_norms(self, then: Sequence[float], maker: str) -> None:
        """Refuse the state of a training whose weights had other norms."""
        for name, now, was in zip(self.names, self.norms(), then, strict=True):
            if not math.isclose(now, was, rel_tol=1e-4):
                raise UsageError(
                    f"the weights of {name} are not those that the state was saved with; first "
                    f"make {maker}, then load the model's state dict, then this state"
                )


def find_sparse(
    model: nn.Module,
    sparsity: float | str | None,
    settings: Settings,
    dense: str | Sequence[str] | None,
    example: Any,
) -> SparseLayers:
    """The layers of ``model``, with the share ``sparsity`` of zeros distributed over them."""
    every = find_layers(model, dense, example)
    sparse = [layer for layer in every if not layer.dense]
    pattern = settings.pattern
    if sparsity is None:
        if not pattern.structured:
            raise UsageError("give `sparsity`, such as 0.9, or an N:M `pattern`")
        sparsity = pattern.sparsity
    shapes = [layer.shape for layer in sparse]
    share = parse_sparsity(str(sparsity))
    target = counts(shapes, share, settings.distribution, pattern)
    return SparseLayers(
        every,
        [layer.name for layer in sparse],
        [layer.weight for layer in sparse],
        list(target.values()),
    )
