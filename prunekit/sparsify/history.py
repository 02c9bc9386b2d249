"""What became of a sparse structure: overlap, growth and survival, exchange by exchange."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Record:
    """One row per exchange; structures are lists of boolean tensors."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.told = 0
        """Rows that were handed out already."""
        self.grown: list[Tensor] = []
        """What the last exchange added."""
        self.ever: list[Tensor] = []
        """What any exchange added."""

    def note(
        self,
        before: list[Tensor],
        left: list[Tensor],
        after: list[Tensor],
        facts: dict[str, Any],
    ) -> float:
        """Note the step from ``before`` to ``after`` by way of ``left``; gives the overlap."""
        survived = share(self.grown, left)
        self.grown = [now & ~held for now, held in zip(after, left, strict=True)]
        self.ever = [
            old | new for old, new in zip(self.ever or self.grown, self.grown, strict=True)
        ]
        iou = overlap(before, after)
        found = {"iou": iou, "grown": count(self.grown), "survival": survived}
        self.rows.append({"stage": "update", **facts, **found})
        return iou

    def new(self) -> list[dict[str, Any]]:
        """The rows since the last call."""
        found = self.rows[self.told :]
        self.told = len(self.rows)
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON facts."""
        tensors = {f"grown.{i}": t for i, t in enumerate(self.grown)}
        return tensors | {f"ever.{i}": t for i, t in enumerate(self.ever)}, {"rows": self.rows}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; what it had was told."""
        self.rows, self.told = list(facts["rows"]), len(facts["rows"])
        for name in ("grown", "ever"):
            held = [key for key in tensors if key.startswith(f"{name}.")]
            setattr(self, name, [tensors[f"{name}.{i}"].bool() for i in range(len(held))])


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
