"""``log.jsonl`` as the parts of a report: what happened from epoch to epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prunekit.report.schema import EpochPart, UpdatePart
from prunekit.support.errors import FileError

_P = TypeVar("_P", EpochPart, UpdatePart)

_START = '{"stage": '


def read_log(path: str | Path) -> tuple[tuple[EpochPart, ...], tuple[UpdatePart, ...]]:
    """The epochs and the structure updates of a run, stage by stage in order; none without a file.

    An update belongs to the stage of the next epoch, before whose row it is written. What a run
    that was resumed has written twice counts once, as written last. Lines cut off by a crash and
    rows of other kinds are left out.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    epochs: dict[tuple[str, int], EpochPart] = {}
    updates: dict[tuple[str | None, int, int], UpdatePart] = {}
    waiting: list[UpdatePart] = []
    stages: list[str | None] = []

    def settle(stage: str | None) -> None:
        for update in waiting:
            updates[stage, update.step, update.cycle] = update.model_copy(update={"stage": stage})
        waiting.clear()

    for row in _rows(text):
        if row.get("stage") == "update":
            waiting += _part(UpdatePart, {**row, "stage": None})
            continue
        for epoch in _part(EpochPart, row):
            epochs[epoch.stage, epoch.epoch] = epoch
            if epoch.stage not in stages:
                stages.append(epoch.stage)
            settle(epoch.stage)
    settle(stages[-1] if stages else None)
    order = {stage: number for number, stage in enumerate(stages)}
    return (
        tuple(sorted(epochs.values(), key=lambda e: (order[e.stage], e.epoch))),
        tuple(sorted(updates.values(), key=lambda u: (order.get(u.stage, 0), u.step, u.cycle))),
    )


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object on a line of its own, or after the cut-off start of another."""
    for line in text.split("\n"):
        for start in (0, line.rfind(_START)):
            try:
                row = json.loads(line[max(0, start) :], parse_constant=lambda _: None)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row
            break


def _part(kind: type[_P], row: dict[str, Any]) -> list[_P]:
    """The row as a ``kind``, or nothing; fields that a report does not keep are dropped."""
    try:
        return [kind(**{name: row[name] for name in kind.model_fields if name in row})]
    except ValidationError:
        return []
