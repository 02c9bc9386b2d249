"""The curve of a sweep as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.report.scale import Scale, from_top, tick_texts
from prunekit.report.staircase import Dot, Panel
from prunekit.report.templates import template


@dataclass(frozen=True)
class SweepPoint:
    """The best plan within one latency; shares are of the dense network's."""

    asked: float
    ratio: float
    ms: float
    low_ms: float
    high_ms: float
    kept: float
    """Of the summed scores."""
    macs: float
    params: float
    gap: float
    widths: dict[str, int]
    knee: bool = False


@dataclass(frozen=True)
class Sweep:
    """One profile, one scoring, many latencies."""

    model: str
    target: str
    criterion: str
    solver: str
    granularity: int
    dense_ms: float
    sizes: dict[str, int]
    points: tuple[SweepPoint, ...]


def cells(point: SweepPoint) -> tuple[str, ...]:
    """A point in words: latency, milliseconds, saliency kept, MACs, parameters."""
    return (
        f"{point.ratio:.1%}",
        f"{point.ms:.3g} [{point.low_ms:.3g}, {point.high_ms:.3g}]",
        f"{point.kept:.1%}",
        f"{point.macs:.1%}",
        f"{point.params:.1%}",
    )


def sweep_html(sweep: Sweep) -> str:
    """A page with the curve, the plans, and the widths of every group."""
    points = sweep.points
    groups = [
        (name, size, [(p.widths[name] / size, p.widths[name]) for p in points])
        for name, size in sweep.sizes.items()
        if any(p.widths[name] != size for p in points)
    ]
    lead = (
        f"{len(points)} budgets, dense {sweep.dense_ms:.4g} ms, granularity {sweep.granularity}, "
        f"solver {sweep.solver}, largest proved gap {max(p.gap for p in points):.3%}."
    )
    return template("sweep.html.j2").render(
        sweep=sweep,
        lead=lead,
        panel=_panel(sweep),
        rows=[(point, cells(point)) for point in points],
        groups=groups,
    )


def _panel(sweep: Sweep) -> Panel:
    points: Sequence[SweepPoint] = sorted(sweep.points, key=lambda p: p.ratio)
    across = Scale(0.0, 1.02)
    up = Scale(0.0, 1.06)
    xs, ys = across.ticks(), up.ticks(5)
    knee = next((p for p in points if p.knee), None)
    return Panel(
        title=f"{sweep.criterion} kept over predicted latency",
        desc="" if knee is None else f"The knee is at {knee.ratio:.0%} of the dense latency.",
        axis="predicted latency, of the dense network's",
        line=" ".join(
            f"{across.percent(p.ratio):.2f},{100 - up.percent(p.kept):.2f}" for p in points
        ),
        dots=[
            Dot(
                across(p.ratio),
                from_top(up, p.kept),
                f"{p.ratio:.1%} of the latency: {p.kept:.1%} kept",
                p.knee,
            )
            for p in points
        ],
        rises=[],
        x_ticks=[(across(t), text) for t, text in zip(xs, tick_texts(xs), strict=True)],
        y_ticks=[(from_top(up, t), text) for t, text in zip(ys, tick_texts(ys), strict=True)],
        x=0,
        y=0,
    )
