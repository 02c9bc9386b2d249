"""The numbers of a training as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from prunekit.report.schema import EpochPart, UpdatePart
from prunekit.report.words import duration, loss_text, share

_T = TypeVar("_T")


class Grid(NamedTuple):
    """A table of numbers: the head, and rows whose first cell names the row."""

    what: str
    head: list[str]
    rows: list[list[str]]


def epoch_grid(epochs: Iterable[EpochPart]) -> Grid:
    """The numbers of every epoch given."""
    epochs = list(epochs)
    name = next((e.value_name for e in epochs if e.value is not None), "accuracy")
    return _grid(
        "epoch",
        epochs,
        [
            ("stage", lambda e: e.stage),
            ("epoch", lambda e: str(e.epoch)),
            ("loss", lambda e: _or_none(e.loss, loss_text)),
            ("learning rate", lambda e: _or_none(e.lr, lambda v: f"{v:.3g}")),
            (name, lambda e: _or_none(e.value, e.value_text)),
            ("time", lambda e: _or_none(e.seconds, duration)),
        ],
    )


def update_grid(updates: Iterable[UpdatePart]) -> Grid:
    """The numbers of every update given; columns that no update has are left out."""
    return _grid(
        "update",
        list(updates),
        [
            ("cycle", lambda u: str(u.cycle)),
            ("step", lambda u: str(u.step)),
            ("predicted latency", lambda u: _or_none(u.predicted_ratio, share)),
            ("omega", lambda u: _or_none(u.omega, lambda v: f"{v:.3g}")),
            ("IoU", lambda u: _or_none(u.iou, lambda v: f"{v:.3f}")),
            ("grown", lambda u: _or_none(u.grown, str)),
            ("survival", lambda u: _or_none(u.survival, share)),
            ("FLOPs so far", lambda u: _or_none(u.relative_flops, lambda v: f"{v:.2f}x")),
        ],
    )


def _grid(
    what: str, items: list[_T], columns: list[tuple[str, Callable[[_T], str | None]]]
) -> Grid:
    values = [[tell(item) for _, tell in columns] for item in items]
    filled = [i for i in range(len(columns)) if any(row[i] is not None for row in values)]
    return Grid(
        what=what,
        head=[columns[i][0] for i in filled],
        rows=[["–" if row[i] is None else str(row[i]) for i in filled] for row in values],
    )


def _or_none(value: _T | None, text: Callable[[_T], str]) -> str | None:
    return None if value is None else text(value)


def few(items: Sequence[_T]) -> list[_T]:
    """The first, the middle and the last."""
    return spread(items, 3)


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most ``most`` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
