"""Layers of a slim network solved anew, in the order that they run, towards the dense network's."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.core.plan import ChannelPlan
from prunekit.networks.products import Product, Survey, Watch
from prunekit.networks.running import evaluating
from prunekit.networks.slimming import WHOLE, kept
from prunekit.pruning.repair.shifts import Shifts
from prunekit.pruning.repair.sums import Change, Sums, best_change
from prunekit.tasks.base import run

FEWEST_ROWS, MOST_ROWS, ROWS_PER_FEATURE = 8192, 32768, 6
"""Positions that a layer is solved from: so many per value that an output is made from."""
MOST_FEATURES = 6144
"""Of one group: sums of more take more than 300 MB."""
HELD_OUT = 5
"""Every so-manieth image decides on the ridge, and is in no sum that is solved."""
_CHUNK = 1 << 22
"""Values that are gathered at once."""
_EXACT = 1e-12
"""Of a layer's outputs in square: what rounding leaves."""


@dataclass(frozen=True)
class RepairedLayer:
    """What became of one layer; distances are of its outputs, in their deviations, held out.

    ``rows`` positions were solved from, for ``needed`` unknowns per output. ``ridge`` is None
    where only the bias was changed; all are None and 0 where no image was there.
    """

    before: float | None
    after: float | None
    ridge: float | None
    rows: int
    needed: int


@dataclass(eq=False)
class Wanted:
    """What the dense network's layers gave at the positions chosen, for the outputs kept."""

    count: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


def positions(layer: str, total: int, features: int) -> Tensor:
    """Which of a layer's positions are read, ascending: the same for the same layer, always."""
    wanted = min(MOST_ROWS, max(FEWEST_ROWS, ROWS_PER_FEATURE * features))
    if wanted >= total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
    return torch.randperm(total, generator=generator)[:wanted].sort().values


class _Recording(Watch):
    """Keeps what the dense network's layers give."""

    def __init__(self, dense: nn.Module, plan: ChannelPlan, survey: Survey, count: int) -> None:
        super().__init__(dense)
        self.plan, self.survey = plan, survey
        self.parts = kept(dense, plan)
        self.wanted = Wanted(count)

    def product(self, product: Product, compute: Any) -> Any:
        output = compute()
        layer = product.layer
        if self.survey.calls.get(layer) != 1:
            return output
        rows = product.rows_of(output)
        chosen = rows[positions(layer, len(rows), product.features)].float()
        cut = self.plan.cuts.get(layer)
        for part in cut.scaled if cut else ():
            chosen[:, list(part.rows)] *= part.factor
        left = self.parts.get(f"{layer}.weight", WHOLE).axes.get(0)
        self.wanted.rows[layer] = chosen if left is None else chosen[:, left]
        self.wanted.shapes[layer] = (len(rows), product.features)
        return output


@torch.no_grad()
def record(dense: nn.Module, plan: ChannelPlan, survey: Survey, inputs: Any, count: int) -> Wanted:
    """What ``dense`` computes for ``count`` inputs, layer by layer."""
    watch = _Recording(dense, plan, survey, count)
    with evaluating(dense), watch:
        run(dense, inputs)
    return watch.wanted


class _Solving(Watch):
    """Changes every layer when it is reached, and goes on with what it gives then."""

    def __init__(self, small: nn.Module, wanted: Wanted, shifts: Shifts, weights: bool) -> None:
        super().__init__(small)
        self.wanted, self.shifts, self.weights = wanted, shifts, weights
        self.modules = dict(small.named_modules())
        self.solved: dict[str, RepairedLayer] = {}
        self.left: dict[str, str] = {}

    def product(self, product: Product, compute: Any) -> Any:
        layer = product.layer
        target = self.wanted.rows.pop(layer, None)
        if target is not None:
            self._solve(product, target)
        return compute()

    def _solve(self, product: Product, target: Tensor) -> None:
        layer = product.layer
        total, features = self.wanted.shapes[layer]
        if self.weights and product.features > MOST_FEATURES:
            self.left[layer] = f"{product.features} values per output; at most {MOST_FEATURES}"
            return
        chosen = positions(layer, total, features)
        biased = self.shifts.can(layer)
        fit = held_out = None
        if (product.positions, len(product.weight)) != (total, target.shape[1]):
            self.left[layer] = "it reads other positions than in the dense network"
            return
        for at, wanted in _chunks(chosen, target, product.features * product.groups):
            sums = _sums(product, at, wanted, self.wanted.count / total)
            fit = sums[0] if fit is None else fit + sums[0]
            held_out = sums[1] if held_out is None else held_out + sums[1]
        if fit is None or held_out is None:
            return
        size = float((target.double() - target.double().mean(0)).square().sum())
        squares = float(fit.rr.sum() + held_out.rr.sum())
        if squares <= _EXACT * max(size, 1e-30):
            return  # what it reads is what it was
        change = best_change(fit, held_out, biased=biased, weights=self.weights)
        share = held_out.rows / max(1, len(target)) * size or 1.0
        errors = [float(held_out.error(c).sum()) for c in (_none(change), change)]
        before, after = ((max(0.0, e) / share) ** 0.5 for e in errors)
        if after < before:
            self._apply(product, change)
        ridge = change.ridge if bool(change.weight.any()) else None
        needed = product.features if self.weights else 1
        self.solved[layer] = RepairedLayer(before, after, ridge, fit.rows, needed)

    def _apply(self, product: Product, change: Change) -> None:
        """Add the change to the layer, in place."""
        weight = product.weight
        outputs_first = change.weight.transpose(1, 2).reshape(weight.shape)
        weight.data.add_(outputs_first.to(weight.dtype))
        self.shifts.add_(self.modules, product.layer, change.bias.flatten())


@torch.no_grad()
def solve_(
    small: nn.Module, wanted: Wanted, shifts: Shifts, inputs: Any, *, weights: bool
) -> tuple[dict[str, RepairedLayer], dict[str, str]]:
    """Change ``small``, in place, towards ``wanted``; layers changed, and those left with why.

    ``weights`` False changes biases only.
    """
    watch = _Solving(small, wanted, shifts, weights)
    with evaluating(small), watch:
        run(small, inputs)
    return watch.solved, watch.left


def _none(change: Change) -> Change:
    return Change(torch.zeros_like(change.weight), torch.zeros_like(change.bias))


def _chunks(chosen: Tensor, target: Tensor, values: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(64, _CHUNK // max(1, values))
    for start in range(0, len(chosen), step):
        yield chosen[start : start + step], target[start : start + step]


def _sums(product: Product, at: Tensor, wanted: Tensor, share: float) -> tuple[Sums, Sums]:
    """Of the images to fit to, and of those held out; ``share`` is images per position."""
    x = product.patches(at).double()
    weight = product.weight.double().reshape(product.groups, -1, product.features)
    given = torch.einsum("ngd,god->ngo", x, weight)
    if product.bias is not None:
        given = given + product.bias.double().view(product.groups, -1)
    r = wanted.double().view(len(at), product.groups, -1) - given
    out = (at.double() * share + 1e-9).long() % HELD_OUT == HELD_OUT - 1
    return Sums.of(x[~out], r[~out]), Sums.of(x[out], r[out])
