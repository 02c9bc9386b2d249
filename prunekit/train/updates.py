"""What a method tells the log of its structure: one row per update, each handed out once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypedDict, TypeVar

from prunekit.train.rule import Row


class UpdateRow(TypedDict):
    """What every method tells; ``cycle`` counts from 0."""

    stage: Literal["update"]
    step: int
    cycle: int


class ExchangeRow(UpdateRow):
    """Of methods that take parts away and bring others back."""

    omega: float
    """The share that was to change hands."""
    iou: float
    """Overlap of the structures before and after."""
    grown: int
    survival: float | None
    """The share of what the update before brought that this one left; None of nothing."""


R = TypeVar("R", bound=Row)


@dataclass
class UpdateLog(Generic[R]):
    """The rows of all updates so far."""

    rows: list[R] = field(default_factory=list)
    told: int = 0
    """Rows that were handed out already."""

    def new(self) -> list[R]:
        """The rows since the last call."""
        rows = self.rows[self.told :]
        self.told = len(self.rows)
        return rows
