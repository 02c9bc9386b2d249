"""Worth by what layers read, without labels: the error that is left when a channel is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup, Member
from prunekit.core.role import IN
from prunekit.criteria.base import NORMALIZE, check_option, normalise, per_channel, weights
from prunekit.criteria.inputs import Moments
from prunekit.support.errors import UsageError

_TINY = 1e-30
_DEAD = 1e-12
"""Of the largest variance: what is less is constant."""
_STEPS = 128
"""In which all channels of a group go, a few at once where there are many."""
_RIDGE = 1e-3
"""Share of each input's own variance that is taken for noise."""


@dataclass(frozen=True)
class Activation:
    """The weights that read a channel times its deviation, in square; nothing makes up for it.

    Of every layer that reads it as a share of what all its inputs contribute; layers' shares are
    added. In the manner of Wanda (arXiv 2306.11695), with the deviation in place of the norm,
    since a constant is for the bias to give.
    """

    normalize: str = "none"
    name: str = "activation"
    needs_gradients: bool = False
    needs_inputs: bool = True

    def __post_init__(self) -> None:
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Not known from weights alone."""
        del group, modules
        raise UsageError(f"criterion {self.name} needs inputs; score with `batches` of them")

    def scores_by_inputs(
        self, group: ChannelGroup, modules: dict[str, nn.Module], moments: Mapping[str, Moments]
    ) -> Tensor:
        """Shares of error per channel, shape (size,).

        Channels that no layer reads, such as queries, score by their share of the weights in
        square that write them.
        """
        parts = [
            per_channel(_shares(modules[member.module], moments[member.module]), member)
            for member in _readers(group, moments)
        ]
        if not parts:
            squares = torch.stack([r.double().square().sum(1) for r in weights(group, modules)])
            parts = list(squares / squares.sum(1, keepdim=True).clamp(min=_TINY))
        return torch.stack(parts).sum(0)

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """As they are, unless asked otherwise."""
        return normalise(scores, self.normalize)


@dataclass(frozen=True)
class Reconstruction(Activation):
    """The error that a channel leaves when those that are worth more make up for it.

    As `Activation`, but channels of a group go one after another, always those that leave least,
    and the weights of the others are solved anew every time: what least squares cannot repair.
    (Optimal Brain Surgeon, Hassibi 1993, for columns.)
    """

    name: str = "reconstruction"

    def scores_by_inputs(
        self, group: ChannelGroup, modules: dict[str, nn.Module], moments: Mapping[str, Moments]
    ) -> Tensor:
        """Shares of error per channel, shape (size,), each at the time that it goes."""
        readers = [
            _Elimination.of(modules[member.module], moments[member.module], member)
            for member in _readers(group, moments)
            if member.index.shape[1] == 1 and moments[member.module].squares.ndim == 2
        ]
        if not readers:
            return super().scores_by_inputs(group, modules, moments)
        scores, left = torch.zeros(group.size, dtype=torch.float64), torch.ones(group.size).bool()
        reached, at_once = 0.0, -(-group.size // _STEPS)
        while left.any():
            errors = torch.stack([reader.errors() for reader in readers]).sum(0)
            order = errors.masked_fill(~left, float("inf")).argsort()
            channels = order[: min(at_once, int(left.sum()))]
            # what goes later is worth no less, which rounding could deny
            scores[channels] = errors[channels].clamp(min=reached)
            reached, left[channels] = float(scores[channels].max()), False
            for reader in readers:
                reader.remove(channels)
        return scores


@dataclass(eq=False)
class _Elimination:
    """What one layer loses as its inputs go: inverse covariance, and its weights' products."""

    inverse: Tensor
    products: Tensor
    whole: Tensor
    at: Tensor
    """Where the group's channels are among the layer's inputs."""

    @classmethod
    def of(cls, module: Any, read: Moments, member: Member) -> _Elimination:
        """Before anything is gone."""
        covariance = read.covariance.cpu()
        own = torch.diagonal(covariance).clamp(min=0)
        deviation = torch.where(own > _DEAD * own.max(), own, 0).sqrt()
        safe = torch.where(deviation > 0, deviation, 1)
        correlation = covariance / torch.outer(safe, safe)
        alive = deviation > 0  # what is constant says nothing of others, and costs nothing
        correlation = torch.where(torch.outer(alive, alive), correlation, 0)
        correlation.diagonal().copy_(torch.where(alive, torch.diagonal(correlation) + _RIDGE, 1))
        columns = _columns(module, len(own)) * deviation
        products = columns.T @ columns
        if _groups_of(module) > 1:  # inputs of different groups are never read together
            products = torch.diag(torch.diagonal(products))
        whole = torch.diagonal(products).sum().clamp(min=_TINY)
        inverse = torch.linalg.inv(correlation)
        return cls(inverse, products, whole, torch.from_numpy(member.index[:, 0].copy()))

    def errors(self) -> Tensor:
        """The share of error that each channel of the group would leave if it went now."""
        # what is left of a variance is never more than all of it
        inverse = torch.diagonal(self.inverse)[self.at].clamp(min=1 / (1 + _RIDGE))
        shares: Tensor = torch.diagonal(self.products)[self.at].clamp(min=0) / inverse / self.whole
        return shares

    def remove(self, channels: Tensor) -> None:
        """Channels go, and the weights of those left are the best without them."""
        gone = self.at[channels]
        rows = self.inverse[gone]
        ratio = torch.linalg.solve(rows[:, gone] + _TINY * torch.eye(len(gone)), rows)
        self.inverse -= rows.T @ ratio
        products = self.products[gone]
        cross = products.T @ ratio
        self.products += ratio.T @ products[:, gone] @ ratio - cross - cross.T


def _readers(group: ChannelGroup, moments: Mapping[str, Moments]) -> list[Member]:
    return [m for m in group.members if m.role == IN and m.module in moments]


def _shares(module: Any, read: Moments) -> Tensor:
    """What every input contributes to a layer, of the whole."""
    covariance = read.covariance
    own = torch.diagonal(covariance).clamp(min=0) if covariance.ndim == 2 else covariance
    contributed = _columns(module, len(own)).square().sum(0).to(own.device) * own
    return contributed / contributed.sum().clamp(min=_TINY)


def _columns(module: Any, inputs: int) -> Tensor:
    """The weights that read each input, shape (weights, inputs)."""
    weight = module.weight.detach().double().cpu()
    groups = inputs // weight.shape[1]
    by_group = weight.reshape(groups, -1, *weight.shape[1:]).movedim(2, 1)  # groups, inputs, ...
    columns: Tensor = by_group.reshape(inputs, -1).T
    return columns


def _groups_of(module: Any) -> int:
    """In how many groups a layer reads its inputs."""
    return int(getattr(module, "groups", 1))
