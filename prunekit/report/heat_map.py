"""Widths of all groups over a training, as a heat map."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from prunekit.report.grids import spread
from prunekit.report.schema import Report
from prunekit.report.words import plural

MOST_COLUMNS = 60
"""The heat map draws at most this many updates, spread evenly, the first and the last among them.

With them the page of a deep network stays below a megabyte.
"""


class Cell(NamedTuple):
    """A stretch of updates in which a group kept the same width; places count updates."""

    x: int
    width: int
    tone: str


class HeatRow(NamedTuple):
    """The widths of a group over time."""

    name: str
    cells: list[Cell]
    first: int
    last: int
    full: int
    words: str


class HeatMap(NamedTuple):
    """Groups down, updates across; ``swatches`` are the legend's (share, tone)."""

    rows: list[HeatRow]
    columns: int
    lead: str
    first: str
    last: str
    swatches: list[tuple[str, str]]


def heat_map(report: Report) -> HeatMap | None:
    """Widths of all groups over the updates; None without any."""
    every = [u for u in report.updates if u.widths]
    if not every:
        return None
    drawn = spread(every, MOST_COLUMNS)
    names = dict.fromkeys([*report.widths, *(name for u in drawn for name in u.widths)])
    rows = []
    final = {name: after for name, (_, after) in report.widths.items()}
    landed = any(final.get(name, width) != width for name, width in every[-1].widths.items())
    for name in names:
        widths = [u.widths.get(name) for u in drawn]
        if landed:
            widths.append(final.get(name))
        known = [width for width in widths if width is not None]
        if known:
            full = max(report.widths.get(name, (0, 0))[0], *known, 1)
            rows.append(_heat_row(name, widths, known, full))
    left_out = "" if len(drawn) == len(every) else f", of which {len(drawn)} are drawn"
    return HeatMap(
        rows=rows,
        columns=len(drawn) + landed,
        lead=f"{plural(len(rows), 'group')} in the order of the network, "
        f"{plural(len(every), 'update')} from left to right{left_out}"
        f"{', and the plan that was chosen by measuring' if landed else ''}.",
        first=f"cycle {drawn[0].cycle}, step {drawn[0].step}",
        last="measured" if landed else f"cycle {drawn[-1].cycle}, step {drawn[-1].step}",
        swatches=[(f"{part:.0%}", _tone(part)) for part in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )


def _heat_row(name: str, widths: list[int | None], known: list[int], full: int) -> HeatRow:
    cells, start = [], 0
    for width, same in groupby(widths):
        end = start + sum(1 for _ in same)
        if width is not None:
            cells.append(Cell(start, end - start, _tone(width / full)))
        start = end
    listed = ", ".join("–" if width is None else str(width) for width in widths)
    words = f"{name}: {listed} of {full} channels"
    return HeatRow(name, cells, known[0], known[-1], full, words)


def _tone(part: float) -> str:
    """How opaque the colour of a share is; nothing left is still to be seen."""
    return f"{0.06 + 0.94 * part:.2f}"
