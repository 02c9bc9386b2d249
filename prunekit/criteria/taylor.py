"""First-order Taylor: how much the loss changes, to first order, when a channel is gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.criteria.base import per_channel
from prunekit.errors import UsageError
from prunekit.graph import ChannelGroup, Member


@dataclass(frozen=True)
class Taylor:
    """|sum of g * theta| over the parameters that scale a channel (HALP, arXiv 2210.06659).

    Where a norm scales the channel these are its weight and bias, |g_gamma gamma + g_beta beta|;
    without one, the weights and bias that write it. Signed terms of coupled layers are added
    before the absolute value, which is averaged over batches. The filters in front of a BatchNorm
    cannot serve: the loss does not change with their scale, so their signed sum is zero. Behind a
    depthwise layer the last norm counts, since those before it gate the same channel.
    """

    name: str = "taylor"
    needs_gradients: bool = True

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Scores for the last batch's gradients, shape (size,)."""
        norms = [m for m in group.members if _is_affine_norm(modules[m.module])]
        writers = [m for m in group.members if m.role == "out"]
        depthwise = [m for m in group.members if _is_depthwise(modules[m.module])]
        share = 1.0
        if depthwise and norms:
            # the norm behind a depthwise layer gates the same channel once more, in series
            if len(writers) == 1:
                norms = norms[-1:]
            else:
                share = len(writers) / (len(writers) + len(depthwise))
        terms = [_signed(modules[m.module], m) for m in norms or writers]
        return share * torch.stack(terms).sum(dim=0).abs()

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Changes of the loss are comparable as they are."""
        return scores


def _is_affine_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def _signed(module: nn.Module, member: Member) -> Tensor:
    """Sum of gradient times value per channel."""
    total: Tensor | None = None
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if value is None:
            continue
        if value.grad is None:
            raise UsageError(
                f"no gradient for {member.module}.{name}; Taylor scores need a backward pass first"
            )
        term = (
            (value.detach() * value.grad).flatten(1).sum(1)
            if value.ndim > 1
            else (value.detach() * value.grad)
        )
        total = term if total is None else total + term
    if total is None:
        raise UsageError(f"{member.module} has no parameters to score")
    return per_channel(total.float(), member)
