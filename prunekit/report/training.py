"""The charts of a training: curves over epochs, steps and cycles, and widths as a heat map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from prunekit.report.scale import Scale, scale_around, tick_texts
from prunekit.report.schema import EpochPart, Report, UpdatePart
from prunekit.report.words import duration, plural, share

_T = TypeVar("_T")

MOST_COLUMNS = 60
"""The heat map draws at most this many updates, spread evenly, the first and the last among them.

With them the page of a deep network stays below a megabyte.
"""

MANY_POINTS = 60
"""From this many points on, a curve shows its points only under the pointer."""


class Point(NamedTuple):
    """A mark of a curve: its place, and what it says."""

    x: str
    y: str
    words: str


class Series(NamedTuple):
    """One curve: ``lines`` are SVG points in a box of 100 by 100, one line per unbroken part."""

    style: str
    name: str
    lines: list[str]
    points: list[Point]
    quiet: bool


class Panel(NamedTuple):
    """One chart of curves."""

    id: str
    title: str
    desc: str
    axis: str
    series: list[Series]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    borders: list[str]
    labels: list[tuple[str, str]]
    limit: tuple[str, str] | None


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


class Grid(NamedTuple):
    """A table of numbers: the head, and rows whose first cell names the row."""

    what: str
    head: list[str]
    rows: list[list[str]]


class Training(NamedTuple):
    """Everything the section draws."""

    lead: str
    stages: list[tuple[str, str]]
    panels: list[Panel]
    heat: HeatMap | None
    grids: list[Grid]


def training(report: Report) -> Training | None:
    """The section's charts and tables; None where nothing was trained and nothing changed."""
    return charts(report.epochs, report.updates, _predicted(report), _heat(report))


def charts(
    epochs: tuple[EpochPart, ...],
    updates: tuple[UpdatePart, ...],
    predicted: Panel | None = None,
    heat: HeatMap | None = None,
) -> Training | None:
    """:func:`training` of any run, whose structure may have no latency and no widths."""
    if not (epochs or updates):
        return None
    panels = [
        _epoch_panel("loss", "Training loss", epochs, lambda e: e.loss, _loss_text, _loss_scale),
        _epoch_panel(
            *("accuracy", "Validation accuracy", epochs),
            *(lambda e: e.accuracy, lambda v: f"{v:.2%}", _share_scale),
        ),
        predicted,
        _structure(updates),
    ]
    return Training(
        lead=_lead(epochs, updates),
        stages=[
            (stage, f"epochs {first} to {last}" if last > first else f"epoch {first}")
            for stage, first, last in _stages(epochs)
        ],
        panels=[panel for panel in panels if panel is not None],
        heat=heat,
        grids=[grid for grid in (epoch_grid(epochs), update_grid(updates)) if grid.rows],
    )


# --- in words and in numbers ----------------------------------------------------------------------


def epoch_grid(epochs: Iterable[EpochPart]) -> Grid:
    """The numbers of every epoch given."""
    return _grid(
        "epoch",
        list(epochs),
        [
            ("stage", lambda e: e.stage),
            ("epoch", lambda e: str(e.epoch)),
            ("loss", lambda e: _or_none(e.loss, _loss_text)),
            ("learning rate", lambda e: _or_none(e.lr, lambda v: f"{v:.3g}")),
            ("accuracy", lambda e: _or_none(e.accuracy, lambda v: f"{v:.2%}")),
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
    there = [i for i in range(len(columns)) if any(row[i] is not None for row in values)]
    return Grid(
        what=what,
        head=[columns[i][0] for i in there],
        rows=[["–" if row[i] is None else str(row[i]) for i in there] for row in values],
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


def _lead(epochs: tuple[EpochPart, ...], updates: tuple[UpdatePart, ...]) -> str:
    parts = []
    if epochs:
        stages = len(_stages(epochs))
        text = plural(len(epochs), "epoch") + (f" in {stages} stages" if stages > 1 else "")
        seen = [e.accuracy for e in epochs if e.accuracy is not None]
        if seen:
            text += f", the last ending at {seen[-1]:.2%} validation accuracy"
        parts.append(f"{text}.")
    if updates:
        text = f"{plural(len(updates), 'update')} of the structure"
        ratios = [u.predicted_ratio for u in updates if u.predicted_ratio is not None]
        if ratios:
            text += f", the last predicted at {ratios[-1]:.1%} of the dense latency"
        parts.append(f"{text}.")
    return " ".join(parts)


def _stages(epochs: Iterable[EpochPart]) -> list[tuple[str, int, int]]:
    """(stage, first, last), counting epochs over all stages from 1."""
    found, done = [], 0
    for stage, members in groupby(epochs, key=lambda e: e.stage):
        count = sum(1 for _ in members)
        found.append((stage, done + 1, done + count))
        done += count
    return found


def _loss_text(loss: float) -> str:
    return f"{loss:.4g}"


# --- curves ---------------------------------------------------------------------------------------

Place = tuple[float, float, str]
"""A point by its values, and what it says."""


def _epoch_panel(
    id_: str,
    title: str,
    epochs: tuple[EpochPart, ...],
    value: Callable[[EpochPart], float | None],
    text: Callable[[float], str],
    scale: Callable[[list[float]], tuple[Scale, Callable[[list[float]], list[str]]]],
) -> Panel | None:
    """A value per epoch over all stages; the curve is broken where a stage ends."""
    values = [v for epoch in epochs if (v := value(epoch)) is not None]
    if not values:
        return None
    across = Scale(0.5, len(epochs) + 0.5)
    up, texts = scale(values)
    runs: list[list[Place]] = []
    numbered = list(enumerate(epochs, 1))
    for stage, members in groupby(numbered, key=lambda pair: pair[1].stage):
        runs += _unbroken(
            (number, value(epoch), f"{stage}, epoch {epoch.epoch}: {id_} ", text)
            for number, epoch in members
        )
    stages = _stages(epochs)
    ticks = up.ticks(5)
    low, high = min(values), max(values)
    return Panel(
        id=id_,
        title=title,
        desc=f"From {text(values[0])} to {text(values[-1])}, between {text(low)} and {text(high)}, "
        f"over {plural(len(epochs), 'epoch')} ({', '.join(stage for stage, *_ in stages)}).",
        axis="epoch",
        series=[_series("first", id_, runs, across, up)],
        x_ticks=_whole_ticks(across),
        y_ticks=[(_top(up, t), words) for t, words in zip(ticks, texts(ticks), strict=True)],
        borders=[across(first - 0.5) for _, first, _ in stages[1:]],
        labels=[
            (across((first + last) / 2), stage)
            for stage, first, last in stages
            if len(stages) > 1 and (last - first + 1) / len(epochs) >= 0.023 * len(stage)
        ],
        limit=None,
    )


def _loss_scale(values: list[float]) -> tuple[Scale, Callable[[list[float]], list[str]]]:
    return scale_around(values), lambda ticks: [f"{tick:.4g}" for tick in ticks]


def _share_scale(values: list[float]) -> tuple[Scale, Callable[[list[float]], list[str]]]:
    scale = scale_around(values)
    return Scale(scale.low, max(min(1.0, scale.high), max(values))), tick_texts


def _predicted(report: Report) -> Panel | None:
    """Predicted latency over training steps, and the target."""
    updates = [u for u in report.updates if u.predicted_ratio is not None]
    values = [u.predicted_ratio for u in updates if u.predicted_ratio is not None]
    if not values:
        return None
    limit = report.latency.limit_ratio
    across = Scale(0.0, max(1, *(u.step for u in updates)))
    up = scale_around([*values, limit])
    runs = _unbroken((u.step, u.predicted_ratio, f"step {u.step}: ", share) for u in updates)
    ticks = up.ticks(5)
    return Panel(
        id="predicted",
        title="Predicted latency",
        desc=f"In percent of the dense latency, from {share(values[0])} to {share(values[-1])} "
        f"in {plural(len(values), 'update')}; the target is {share(limit)}.",
        axis="training step",
        series=[_series("first", "predicted", runs, across, up)],
        x_ticks=_whole_ticks(across),
        y_ticks=[(_top(up, t), words) for t, words in zip(ticks, tick_texts(ticks), strict=True)],
        borders=[],
        labels=[],
        limit=(_top(up, limit), f"target {share(limit)}"),
    )


def _structure(updates: tuple[UpdatePart, ...]) -> Panel | None:
    """How much of the structure stays from cycle to cycle, and how much of what grew."""
    named = [
        ("first", "IoU", "IoU with the cycle before", [u.iou for u in updates]),
        (
            "second",
            "survival",
            "survival of what grew",
            [u.survival for u in updates],
        ),
    ]
    named = [one for one in named if any(value is not None for value in one[3])]
    if not named:
        return None
    cycles = [u.cycle for u in updates]
    across, up = Scale(min(cycles) - 0.5, max(cycles) + 0.5), Scale(0.0, 1.0)
    series, told = [], []
    for style, short, name, values in named:
        places = zip(cycles, values, strict=True)
        runs = _unbroken((c, v, f"cycle {c}: {short} ", lambda v: f"{v:.3f}") for c, v in places)
        series.append(_series(style, name, runs, across, up))
        there = [value for value in values if value is not None]
        told.append(f"{short} from {there[0]:.3f} to {there[-1]:.3f}")
    return Panel(
        id="structure",
        title=" and ".join(short for _, short, *_ in named),
        desc=f"Per cycle, between 0 and 1: {'; '.join(told)}.",
        axis="cycle",
        series=series,
        x_ticks=_whole_ticks(across),
        y_ticks=[(_top(up, t), f"{t:g}") for t in (0.0, 0.25, 0.5, 0.75, 1.0)],
        borders=[],
        labels=[],
        limit=None,
    )


def _unbroken(
    values: Iterable[tuple[float, float | None, str, Callable[[float], str]]],
) -> list[list[Place]]:
    """Points in parts without a missing value."""
    runs: list[list[Place]] = []
    broken = True
    for x, y, words, text in values:
        if y is not None:
            if broken:
                runs.append([])
            runs[-1].append((x, y, words + text(y)))
        broken = y is None
    return runs


def _series(style: str, name: str, runs: list[list[Place]], across: Scale, up: Scale) -> Series:
    points = [Point(across(x), _top(up, y), words) for run in runs for x, y, words in run]
    return Series(
        style=style,
        name=name,
        lines=[
            " ".join(f"{across.percent(x):.2f},{100 - up.percent(y):.2f}" for x, y, _ in run)
            for run in runs
            if len(run) > 1
        ],
        points=points,
        quiet=len(points) >= MANY_POINTS,
    )


def _top(up: Scale, value: float) -> str:
    """A value as a distance from the top."""
    return f"{100 - up.percent(value):.3f}%"


def _whole_ticks(across: Scale) -> list[tuple[str, str]]:
    ticks = [tick for tick in across.ticks(5) if abs(tick - round(tick)) < 1e-6]
    return [(across(tick), str(round(tick))) for tick in ticks]


# --- the heat map ---------------------------------------------------------------------------------


def _heat(report: Report) -> HeatMap | None:
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
        there = [width for width in widths if width is not None]
        if there:
            full = max(report.widths.get(name, (0, 0))[0], *there, 1)
            rows.append(_heat_row(name, widths, there, full))
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


def _heat_row(name: str, widths: list[int | None], there: list[int], full: int) -> HeatRow:
    cells, start = [], 0
    for width, same in groupby(widths):
        end = start + sum(1 for _ in same)
        if width is not None:
            cells.append(Cell(start, end - start, _tone(width / full)))
        start = end
    listed = ", ".join("–" if width is None else str(width) for width in widths)
    words = f"{name}: {listed} of {full} channels"
    return HeatRow(name, cells, there[0], there[-1], full, words)


def _tone(part: float) -> str:
    """How opaque the colour of a share is; nothing left is still to be seen."""
    return f"{0.06 + 0.94 * part:.2f}"
