"""Curves of a training: values over epochs, steps and cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

from prunekit.report.scale import Scale, from_top, scale_around, tick_texts
from prunekit.report.schema import EpochPart, Report, UpdatePart
from prunekit.report.words import plural, share

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


def stages_of(epochs: Iterable[EpochPart]) -> list[tuple[str, int, int]]:
    """(stage, first, last), counting epochs over all stages from 1."""
    stages, done = [], 0
    for stage, members in groupby(epochs, key=lambda e: e.stage):
        count = sum(1 for _ in members)
        stages.append((stage, done + 1, done + count))
        done += count
    return stages


Place = tuple[float, float, str]
"""A point by its values, and what it says."""


def epoch_panel(
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
    stages = stages_of(epochs)
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
        y_ticks=[(from_top(up, t), words) for t, words in zip(ticks, texts(ticks), strict=True)],
        borders=[across(first - 0.5) for _, first, _ in stages[1:]],
        labels=[
            (across((first + last) / 2), stage)
            for stage, first, last in stages
            if len(stages) > 1 and (last - first + 1) / len(epochs) >= 0.023 * len(stage)
        ],
        limit=None,
    )


def loss_scale(values: list[float]) -> tuple[Scale, Callable[[list[float]], list[str]]]:
    """An axis around the losses, and the texts of its ticks."""
    return scale_around(values), lambda ticks: [f"{tick:.4g}" for tick in ticks]


def share_scale(values: list[float]) -> tuple[Scale, Callable[[list[float]], list[str]]]:
    """The same around shares of one."""
    scale = scale_around(values)
    return Scale(scale.low, max(min(1.0, scale.high), max(values))), tick_texts


def predicted_panel(report: Report) -> Panel | None:
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
        y_ticks=[
            (from_top(up, t), words) for t, words in zip(ticks, tick_texts(ticks), strict=True)
        ],
        borders=[],
        labels=[],
        limit=(from_top(up, limit), f"target {share(limit)}"),
    )


def structure_panel(updates: tuple[UpdatePart, ...]) -> Panel | None:
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
    series, summaries = [], []
    for style, short, name, values in named:
        places = zip(cycles, values, strict=True)
        runs = _unbroken((c, v, f"cycle {c}: {short} ", lambda v: f"{v:.3f}") for c, v in places)
        series.append(_series(style, name, runs, across, up))
        known = [value for value in values if value is not None]
        summaries.append(f"{short} from {known[0]:.3f} to {known[-1]:.3f}")
    return Panel(
        id="structure",
        title=" and ".join(short for _, short, *_ in named),
        desc=f"Per cycle, between 0 and 1: {'; '.join(summaries)}.",
        axis="cycle",
        series=series,
        x_ticks=_whole_ticks(across),
        y_ticks=[(from_top(up, t), f"{t:g}") for t in (0.0, 0.25, 0.5, 0.75, 1.0)],
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
    points = [Point(across(x), from_top(up, y), words) for run in runs for x, y, words in run]
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


def _whole_ticks(across: Scale) -> list[tuple[str, str]]:
    ticks = [tick for tick in across.ticks(5) if abs(tick - round(tick)) < 1e-6]
    return [(across(tick), str(round(tick))) for tick in ticks]
