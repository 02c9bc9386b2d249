"""FPGM: how far a filter is from the others of its layer, which could stand in for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup
from prunekit.core.scores import PRESENT
from prunekit.criteria.base import (
    NORMALIZE,
    REDUCE,
    alive,
    check_option,
    normalise,
    reduced,
    weights,
)

BLOCK = 2**23
"""Distances held at a time (64 MB)."""


@dataclass(frozen=True)
class FPGM:
    """Sum of a filter's distances to the layer's others (geometric median, arXiv 1811.00250).

    Distances are between the group's channels that are there: a removed one scores zero and is
    nobody's neighbour. Coupled layers are reduced; ``normalize`` = ``mean``, as in `Magnitude`.
    """

    reduce: str = "mean"
    normalize: str = "mean"
    name: str = "fpgm"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        check_option(self.name, "reduce", self.reduce, REDUCE)
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Sum of distances per channel, shape (size,)."""
        layers = weights(group, modules)
        live = alive(layers)
        scores = torch.zeros(group.size, dtype=torch.float64, device=live.device)
        distances = reduced([_distances(rows[live]) for rows in layers], self.reduce)
        # the last live channel has no neighbours, and must not rank with the removed ones
        scores[live] = distances.clamp_min(PRESENT)
        return scores

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores over the mean of the channels that are there."""
        return normalise(scores, self.normalize)


def _distances(rows: Tensor) -> Tensor:
    """Sum over all rows of the Euclidean distance to each, shape (rows,)."""
    # by matrix products, whose cancellation float32 would not survive
    rows = rows.double()
    parts = [
        torch.cdist(part, rows, compute_mode="use_mm_for_euclid_dist").sum(dim=1)
        for part in torch.split(rows, max(1, BLOCK // max(1, len(rows))))
    ]
    return torch.cat(parts)
