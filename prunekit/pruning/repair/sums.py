"""Sums of a least-squares problem, and the change of weights that solves it best elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Tried, as shares of each input's own sum of squares."""
_FLOOR = 1e-10
"""Of the mean of these, for inputs that are always zero."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Of inputs x (rows, groups, features) and what their outputs lack, r (rows, groups, outputs).

    In float64; one group after another, each with its own inputs and outputs.
    """

    rows: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: Tensor

    @classmethod
    def of(cls, x: Tensor, r: Tensor) -> Sums:
        """Of some rows."""
        by_group, lacking = x.movedim(0, 1), r.movedim(0, 1)
        return cls(
            len(x),
            by_group.sum(1),
            lacking.sum(1),
            by_group.transpose(1, 2) @ by_group,
            by_group.transpose(1, 2) @ lacking,
            lacking.square().sum((1, 2)),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def error(self, change: Change) -> Tensor:
        """The sum of squares that ``change`` leaves, per group."""
        weight, bias = change.weight, change.bias
        moved = (weight * (self.xx @ weight - 2 * self.xr)).sum((1, 2))
        cross = (self.x[:, None] @ weight)[:, 0] - self.r
        return self.rr + moved + (bias * (self.rows * bias + 2 * cross)).sum(1)


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to a layer: weight (groups, features, outputs), bias (groups, outputs)."""

    weight: Tensor
    bias: Tensor
    ridge: float = float("inf")


def best_change(
    fit: Sums, held_out: Sums, *, biased: bool, weights: bool, ridges: tuple[float, ...] = RIDGES
) -> Change:
    """The change fitted to ``fit`` that leaves least of ``held_out``; none where none helps.

    The ridge pulls towards the weights as they are, so that inputs that say nothing change
    nothing. ``biased``: outputs may be shifted too. ``weights``: whether they may change at all.
    """
    nothing = Change(torch.zeros_like(fit.xr), torch.zeros_like(fit.r))
    candidates = [nothing]
    if biased:
        candidates.append(Change(nothing.weight, fit.r / fit.rows))
    if weights:
        candidates += [c for r in ridges if (c := _solved(fit, r, biased=biased)) is not None]
    errors = [float(held_out.error(candidate).sum()) for candidate in candidates]
    finite = [e if e == e else float("inf") for e in errors]
    return candidates[min(range(len(candidates)), key=finite.__getitem__)]


def _solved(sums: Sums, ridge: float, *, biased: bool) -> Change | None:
    """The change at one ridge; None where the sums are too nearly singular for it."""
    xx, xr = sums.xx, sums.xr
    if biased:
        xx = xx - sums.x[:, :, None] * sums.x[:, None, :] / sums.rows
        xr = xr - sums.x[:, :, None] * sums.r[:, None, :] / sums.rows
    own = torch.diagonal(xx, dim1=1, dim2=2).clamp(min=0)
    scale = own.mean(1, keepdim=True)
    if not bool((scale > 0).any()):
        return None
    damped = xx + torch.diag_embed(ridge * own + _FLOOR * scale + (scale == 0))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return None
    weight = torch.cholesky_solve(xr, factor)
    if not bool(torch.isfinite(weight).all()):
        return None
    bias = torch.zeros_like(sums.r)
    if biased:
        bias = (sums.r - (sums.x[:, None] @ weight)[:, 0]) / sums.rows
    return Change(weight, bias, ridge)
