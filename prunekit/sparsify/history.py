"""What became of a sparse structure: overlap, growth and survival, exchange by exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from prunekit.train.method_state import Numbered, Saved
from prunekit.train.updates import ExchangeRow, UpdateLog


class _Work(TypedDict, total=False):
    relative_flops: float
    """The training so far, as a share of the same number of dense steps, where it is counted."""


class SparseRow(ExchangeRow, _Work):
    """One exchange of weights."""

    densities: dict[str, float]


class ExchangeFacts(_Work):
    """What of a row the history does not find out itself."""

    step: int
    cycle: int
    omega: float
    densities: dict[str, float]


@dataclass
class History(UpdateLog[SparseRow]):
    """One row per exchange; structures are lists of boolean tensors."""

    grown: list[Tensor] = field(default_factory=list)
    """What the last exchange added."""
    ever_grown: list[Tensor] = field(default_factory=list)

    def record(
        self,
        before: list[Tensor],
        left: list[Tensor],
        after: list[Tensor],
        facts: ExchangeFacts,
    ) -> float:
        """Note the step from ``before`` to ``after`` by way of ``left``; gives the overlap."""
        survived = share(self.grown, left)
        self.grown = [now & ~stayed for now, stayed in zip(after, left, strict=True)]
        self.ever_grown = [
            old | new for old, new in zip(self.ever_grown or self.grown, self.grown, strict=True)
        ]
        iou = overlap(before, after)
        row: SparseRow = {
            "stage": "update",
            **facts,
            "iou": iou,
            "grown": count(self.grown),
            "survival": survived,
        }
        self.rows.append(row)
        return iou


@dataclass(frozen=True)
class HistoryForm:
    """A history as facts and tensors; what it had was told."""

    name: str = "record"

    def write(self, value: History, saved: Saved) -> None:
        """All but how much was told."""
        saved.facts[self.name] = {"rows": list(value.rows)}
        Numbered("grown").write(value.grown, saved)
        Numbered("ever").write(value.ever_grown, saved)

    def read(self, saved: Saved) -> History:
        """With every row told."""
        rows = list(saved.facts[self.name]["rows"])
        grown, ever_grown = Numbered("grown").read(saved), Numbered("ever").read(saved)
        return History(rows, len(rows), grown, ever_grown)


def count(parts: list[Tensor]) -> int:
    """How many are set."""
    return sum(int(torch.count_nonzero(part)) for part in parts)


def share(of: list[Tensor], inside: list[Tensor]) -> float | None:
    """The share of ``of`` that is in ``inside`` too; None of nothing."""
    if not (whole := count(of)):
        return None
    return count([a & b for a, b in zip(of, inside, strict=True)]) / whole


def overlap(one: list[Tensor], other: list[Tensor]) -> float:
    """Intersection over union."""
    both = count([a & b for a, b in zip(one, other, strict=True)])
    return both / (count(one) + count(other) - both)
