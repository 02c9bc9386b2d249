"""BatchNorm scale: the factor that a channel is multiplied by."""

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
    gates,
    is_affine_norm,
    normalise,
    reduced,
    weights,
)


@dataclass(frozen=True)
class BNScale:
    """|gamma| of the BatchNorms that scale a channel (network slimming, arXiv 1708.06519).

    Several norms are reduced; of norms in series behind a depthwise layer the last counts, as in
    `Taylor`. A group without a BatchNorm gets the L2 norms of its filters, scaled so that their
    mean is the mean |gamma| of the model's BatchNorms (1 where it has none). ``normalize`` =
    ``none``, as in the paper, compares gammas across layers as they are.
    """

    reduce: str = "mean"
    normalize: str = "none"
    name: str = "bn_scale"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        check_option(self.name, "reduce", self.reduce, REDUCE)
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """|gamma| per channel, shape (size,)."""
        norms, share = gates(group, modules)
        if not norms:
            level = _mean_scale(modules)
            lengths = [torch.linalg.vector_norm(r, dim=1) for r in weights(group, modules)]
            return reduced([level * n / _mean_present(n) for n in lengths], self.reduce)
        parts = []
        for member in norms:
            scale = _scale(modules[member.module])
            index = torch.from_numpy(member.index).to(scale.device)
            parts.append(reduced(scale[index].unbind(dim=1), self.reduce))
        return reduced(parts, self.reduce) * (share if self.reduce == "sum" else 1.0)

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores divided as ``normalize`` says."""
        return normalise(scores, self.normalize)


def _scale(norm: nn.Module) -> Tensor:
    gamma: Tensor = norm.get_parameter("weight")
    return gamma.detach().float().abs()


def _mean_scale(modules: dict[str, nn.Module]) -> float:
    scales = [_scale(module).cpu() for module in modules.values() if is_affine_norm(module)]
    return float(_mean_present(torch.cat(scales))) if scales else 1.0


def _mean_present(values: Tensor) -> Tensor:
    """The mean of what is not zero, as removed channels are; 1 where nothing is left."""
    present = values[values != 0]
    return present.mean() if present.numel() else torch.ones_like(values.sum())
