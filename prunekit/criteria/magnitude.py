"""Magnitude: the norm of a channel's filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.criteria.base import per_channel
from prunekit.errors import UsageError
from prunekit.graph import ChannelGroup


@dataclass(frozen=True)
class Magnitude:
    """Lp norm of the weights that write a channel, averaged over the group's coupled layers.

    ``normalize`` = ``mean`` divides by the group's mean, since norms of layers with different
    fan-in are not comparable; ``none`` leaves them.
    """

    p: int = 2
    normalize: str = "mean"
    name: str = "magnitude"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise UsageError(f"`p` must be 1 or 2, not {self.p}")
        if self.normalize not in ("mean", "none"):
            raise UsageError(f"`normalize` must be mean or none, not {self.normalize!r}")

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Norm per channel, shape (size,)."""
        norms = []
        for member in group.members:
            module = modules[member.module]
            weight = getattr(module, "weight", None)
            if member.role == "in" or weight is None or weight.ndim < 2:
                continue
            rows = weight.detach().flatten(1).float().abs().pow(self.p).sum(dim=1)
            norms.append(per_channel(rows, member).pow(1 / self.p))
        return torch.stack(norms).mean(dim=0)

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores over the mean of the channels that are there (removed ones weigh nothing)."""
        present = scores[scores > 0]
        return scores / present.mean() if self.normalize == "mean" and present.size else scores
