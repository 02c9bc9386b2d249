"""Random scores: the control that every criterion has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup
from prunekit.criteria.base import alive, weights, writers
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class Random:
    """Uniform on (0, 1], drawn from ``seed``, the group's id and the first writer's weights.

    No global generator is used, so that every process and a resumed run draw alike, and new
    weights draw anew. Channels whose weights are all zero score zero. There is nothing to reduce
    or to normalise: all groups' scores have one distribution.
    """

    seed: int = 0
    name: str = "random"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(
                f"criterion {self.name}: `seed` must be a whole number from 0, not {self.seed!r}"
            )

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Draws per channel, shape (size,)."""
        live = alive(weights(group, modules)).cpu()
        _, first = writers(group, modules)[0]
        return torch.from_numpy(self._draws(group.id, first, group.size)) * live

    def weight_scores(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Draws per weight."""
        del gradient
        draws = torch.from_numpy(self._draws(name, weight, weight.numel()))
        return draws.view(weight.shape).to(weight.device, torch.float32)

    def _draws(self, name: str, weight: Tensor, count: int) -> NDArray[np.float64]:
        # as bytes, which every floating-point type has
        stored = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
        key = [self.seed, zlib.crc32(name.encode()), zlib.crc32(stored.tobytes())]
        return 1 - np.random.default_rng(key).random(count)

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draws are comparable as they are."""
        return scores
