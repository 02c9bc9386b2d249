"""Staircases of a latency table: predicted time over width, with the samples, as HTML, SVG or PNG.

Charts are drawn as in the report: inline SVG whose positions are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

from prunekit.core.graph import LayerShape
from prunekit.latency import LatencyTable
from prunekit.latency.staircase import Staircase, staircases
from prunekit.report.scale import Scale, from_top
from prunekit.report.templates import template
from prunekit.report.words import plural
from prunekit.support.errors import UsageError

MOST_RISES = 48
"""With more blocks than this across a chart, their borders are not drawn."""
ROW, COLUMN, TOP = 270, 470, 96
"""Pixels of a chart's place, and of the head, in the SVG file."""


class Dot(NamedTuple):
    """A sample; ``there`` tells one measured at the chart's other width."""

    x: str
    y: str
    words: str
    there: bool


class Panel(NamedTuple):
    """One staircase; ``line`` are SVG points in a box of 100 by 100."""

    title: str
    desc: str
    axis: str
    line: str
    dots: list[Dot]
    rises: list[str]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    x: int
    y: int


class Row(NamedTuple):
    """All staircases of one layer shape."""

    name: str
    panels: list[Panel]


def plot(table: LatencyTable, shapes: Sequence[LayerShape], suffix: str) -> bytes:
    """The staircases of ``shapes`` as a file of type ``.html``, ``.svg`` or ``.png``."""
    if suffix == ".png":
        return _png(table, shapes)
    if suffix not in (".html", ".svg"):
        raise UsageError(
            f"cannot draw a {suffix or 'file without suffix'}; use .html, .svg or .png"
        )
    rows = [_row(table, shape, number) for number, shape in enumerate(shapes)]
    text = template(f"staircase{suffix}.j2").render(
        table=table,
        rows=rows,
        lead=_lead(table),
        width=2 * COLUMN,
        height=TOP + len(rows) * ROW,
        row_height=ROW,
        top=TOP,
    )
    return text.encode()


def _lead(table: LatencyTable) -> str:
    return (
        f"{plural(len(table.entries), 'layer shape')}, {plural(len(table.networks), 'network')}, "
        f"granularity {table.granularity}; {table.calibration}."
    )


def _row(table: LatencyTable, shape: LayerShape, number: int) -> Row:
    stairs = staircases(table, shape)
    top = max(max(*stair.us, *(spot.carried_us for spot in stair.spots)) for stair in stairs)
    up = Scale(0.0, 1.06 * max(top, 1e-3))
    panels = [_panel(stair, up, number, place) for place, stair in enumerate(stairs)]
    return Row(str(shape), panels)


def _panel(stair: Staircase, up: Scale, row: int, place: int) -> Panel:
    last = int(stair.widths[-1])
    across = Scale(0.0, max(last, 1) * 1.02)
    ticks = [tick for tick in across.ticks() if tick == round(tick)]
    rises = list(range(stair.block, last, stair.block))
    steps = stair.corners()
    return Panel(
        title=title(stair),
        desc=f"From {steps[0][1]:.3g} us at width {steps[0][0]} to {steps[-1][1]:.3g} us at "
        f"{steps[-1][0]}; {plural(len(stair.spots), 'sample')}.",
        axis=axis(stair),
        line=" ".join(f"{across.percent(w):.2f},{100 - up.percent(us):.2f}" for w, us in steps),
        dots=[
            Dot(
                across(spot.width),
                from_top(up, spot.carried_us),
                f"{spot.cin}→{spot.cout}: measured {spot.measured_us:.4g} us, "
                f"predicted {spot.predicted_us:.4g} us",
                spot.there,
            )
            for spot in stair.spots
        ],
        rises=[across(rise) for rise in rises] if len(rises) <= MOST_RISES else [],
        x_ticks=[(across(tick), str(round(tick))) for tick in ticks],
        y_ticks=[(from_top(up, tick), f"{tick:.4g}") for tick in up.ticks(5)],
        x=place * COLUMN,
        y=row * ROW,
    )


def title(stair: Staircase) -> str:
    """Which width the staircase goes over, and what the other is."""
    if stair.side == "both":
        return "over its width"
    other = "in" if stair.side == "out" else "out"
    return f"over {stair.side}-width, at full {other}-width {stair.full}"


def axis(stair: Staircase) -> str:
    """The name of the horizontal axis."""
    return "width" if stair.side == "both" else f"{stair.side}-width"


def _png(table: LatencyTable, shapes: Sequence[LayerShape]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "a PNG needs matplotlib, which is not installed; pip install matplotlib, or use .svg"
        ) from error
    figure = Figure(figsize=(9.4, 2.8 * len(shapes)), dpi=120, layout="constrained")
    axes = figure.subplots(len(shapes), 2, squeeze=False)
    for row, shape in zip(axes, shapes, strict=True):
        stairs = staircases(table, shape)
        for chart, stair in zip(row, stairs, strict=False):
            widths, times = zip(*stair.corners(), strict=True)
            chart.plot(widths, times, color="#2f6fdb")
            for elsewhere, face in ((False, "white"), (True, "#b4620a")):
                spots = [spot for spot in stair.spots if spot.there == elsewhere]
                chart.scatter(
                    [s.width for s in spots],
                    [s.carried_us for s in spots],
                    s=14,
                    facecolors=face,
                    edgecolors="#b4620a",
                    zorder=3,
                )
            chart.set(xlabel=axis(stair), ylabel="us", xlim=(0, None), ylim=(0, None))
            chart.set_title(f"{shape}\n{title(stair)}", fontsize=8, loc="left")
        for chart in row[len(stairs) :]:
            chart.set_axis_off()
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
