"""Magnitude: the norm of a channel's filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup
from prunekit.criteria.base import NORMALIZE, REDUCE, check_option, normalise, reduced, weights


@dataclass(frozen=True)
class Magnitude:
    """Lp norm of the weights that write a channel, reduced over the group's coupled layers.

    ``normalize`` = ``mean`` (or ``max``) divides by the group's mean (largest) score, since norms
    of layers with different fan-in are not comparable; ``none`` leaves them.
    """

    p: int = 2
    reduce: str = "mean"
    normalize: str = "mean"
    name: str = "magnitude"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        check_option(self.name, "p", self.p, (1, 2))
        check_option(self.name, "reduce", self.reduce, REDUCE)
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Norm per channel, shape (size,)."""
        norms = [
            torch.linalg.vector_norm(rows, ord=self.p, dim=1) for rows in weights(group, modules)
        ]
        return reduced(norms, self.reduce)

    def weight_scores(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """|w| of every weight, of whatever norm the channels' scores are."""
        del name, gradient
        return weight.detach().abs()

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores over the mean of the channels that are there (removed ones weigh nothing)."""
        return normalise(scores, self.normalize)


@dataclass(frozen=True)
class MagnitudeL1(Magnitude):
    """`Magnitude` with the sum of absolute weights (Li 2017, arXiv 1608.08710)."""

    p: int = 1
    name: str = "magnitude_l1"
