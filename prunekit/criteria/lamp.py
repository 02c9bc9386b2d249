"""LAMP: a filter's share of its layer, counted among the filters that would outlive it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup
from prunekit.criteria.base import (
    NORMALIZE,
    REDUCE,
    check_option,
    normalise,
    reduced,
    shares,
    weights,
)


@dataclass(frozen=True)
class LAMP:
    """|W_c|^2 over the sum of |W_d|^2 of all channels d with |W_d| >= |W_c| (arXiv 2010.07611).

    The paper scores single weights; here W_c is the filter of channel c, and the sum runs over
    the group's channels in one layer. The largest gets 1 (equal ones share it, whatever their
    order). Coupled layers are reduced; ``normalize`` = ``none``, since the scores are made to be
    compared across layers.
    """

    reduce: str = "mean"
    normalize: str = "none"
    name: str = "lamp"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        check_option(self.name, "reduce", self.reduce, REDUCE)
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Share per channel, shape (size,)."""
        return reduced([_shares(rows) for rows in weights(group, modules)], self.reduce)

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores divided as ``normalize`` says."""
        return normalise(scores, self.normalize)


def _shares(rows: Tensor) -> Tensor:
    """LAMP of each row, shape (size,); all-zero rows get 0."""
    squares = torch.linalg.vector_norm(rows, dim=1).double().square()
    return torch.from_numpy(shares(squares.cpu().numpy())).to(rows.device)
