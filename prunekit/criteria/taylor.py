"""First-order Taylor: how much the loss changes, to first order, when a channel is gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.core.graph import ChannelGroup, Member
from prunekit.core.role import OUT
from prunekit.criteria.base import (
    NORMALIZE,
    REDUCE,
    check_option,
    filters,
    gates,
    gradient,
    no_gradient,
    normalise,
    outputs_first,
    per_channel,
    reduced,
    writers,
)
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class Taylor:
    """|sum of g * theta| over the parameters that scale a channel (HALP, arXiv 2210.06659).

    Where a norm scales the channel these are its weight and bias, |g_gamma gamma + g_beta beta|;
    without one, the weights and bias that write it. Signed terms of coupled layers are added
    before the absolute value, which is averaged over batches. The filters in front of a BatchNorm
    cannot serve: the loss does not change with their scale, so their signed sum is zero. Behind a
    depthwise layer the last norm counts, since those before it gate the same channel.
    ``normalize`` = ``none`` is HALP's: changes of the loss are comparable as they are.
    """

    normalize: str = "none"
    name: str = "taylor"
    needs_gradients: bool = True

    def __post_init__(self) -> None:
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Scores for the last batch's gradients, shape (size,)."""
        norms, share = gates(group, modules)
        members = norms or [m for m in group.members if m.role == OUT]
        terms = [_signed(modules[m.module], m) for m in members]
        return share * torch.stack(terms).sum(dim=0).abs()

    def weight_scores(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """|w * g| of every weight alone."""
        return _change(name, weight, gradient).abs()

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores divided as ``normalize`` says."""
        return normalise(scores, self.normalize)


@dataclass(frozen=True)
class TaylorWeight:
    """First-order Taylor on the weights that write a channel (Molchanov 2019, arXiv 1906.10771).

    Per layer, with w * g of every weight of the channel and without the bias, ``form`` takes

    - ``abs``: the sum of |w * g|;
    - ``square``: the sum of (w * g)^2, the paper's score of each weight alone;
    - ``joint``: (the sum of w * g)^2, the paper's score of the filter as a whole.

    In front of a BatchNorm in training mode ``joint`` is zero for every channel, because the loss
    does not change with a filter's scale; in evaluation mode, whose statistics are fixed, it is
    not, but `Taylor`, on the norm itself, is then the better choice. ``reduce`` = ``sum`` adds up
    coupled layers, which go together; ``normalize`` = ``none``: changes of the loss are
    comparable as they are.
    """

    form: str = "abs"
    reduce: str = "sum"
    normalize: str = "none"
    name: str = "taylor_weight"
    needs_gradients: bool = True

    def __post_init__(self) -> None:
        check_option(self.name, "form", self.form, ("abs", "square", "joint"))
        check_option(self.name, "reduce", self.reduce, REDUCE)
        check_option(self.name, "normalize", self.normalize, NORMALIZE)

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """Scores for the last batch's gradients, shape (size,)."""
        parts = []
        for member, weight in writers(group, modules):
            slope = gradient(weight, f"{member.module}.weight")
            module = modules[member.module]
            terms = filters(weight, member, module) * filters(slope, member, module)
            if self.form == "joint":
                parts.append(terms.sum(dim=1).square())
            else:
                parts.append((terms.abs() if self.form == "abs" else terms.square()).sum(dim=1))
        return reduced(parts, self.reduce)

    def weight_scores(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """|w * g| of every weight alone, or its square unless ``form`` is ``abs``."""
        change = _change(name, weight, gradient)
        return change.abs() if self.form == "abs" else change.square()

    def normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores divided as ``normalize`` says."""
        return normalise(scores, self.normalize)


def _change(name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise no_gradient(weight, name)
    return weight.detach() * gradient


def _signed(module: nn.Module, member: Member) -> Tensor:
    """Sum of gradient times value per channel."""
    total: Tensor | None = None
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if value is None:
            continue
        term = value.detach() * gradient(value, f"{member.module}.{name}")
        term = outputs_first(term, module).flatten(1).sum(1) if term.ndim > 1 else term
        total = term if total is None else total + term
    if total is None:
        raise UsageError(f"{member.module} has no parameters to score")
    return per_channel(total.float(), member)
