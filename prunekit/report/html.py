"""The report as one HTML file that works offline.

Charts are inline SVG whose positions are percentages, so that a narrow window or a sheet of paper
squeezes the marks and never the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import tomli_w

from prunekit.core import target
from prunekit.report.markdown import (
    REPAIR_HEAD,
    chance,
    export_grid,
    repair_rows,
    repair_words,
    summary_rows,
    verdict,
    why_open,
)
from prunekit.report.scale import Scale, scale_around, tick_texts
from prunekit.report.schema import GroupPart, LatencyPart, Report, TrainingPart
from prunekit.report.templates import template
from prunekit.report.training import training
from prunekit.report.words import duration

_T = TypeVar("_T")

TWO_COLUMNS_FROM = 24
"""From this many rows on, a list of groups is set in two columns where there is room."""


def to_html(report: Report) -> str:
    """The whole report as one page, nothing loaded from elsewhere."""
    return template("report.html.j2").render(
        report=report,
        command="prunekit prune",
        verdict=verdict(report),
        doubt=_doubt(report),
        gauge=_gauge(report),
        tiles=_tiles(report),
        summary=[tuple(map(_split_interval, row)) for row in summary_rows(report)],
        landing=_landing(report),
        repair=(repair_words(report), REPAIR_HEAD, repair_rows(report)),
        widths=_widths(report),
        training=training(report),
        frozen=_halves(list(report.frozen.items())),
        facts=_facts(report),
        exports=export_grid(report),
        recipe=recipe_text(report.recipe),
        artifacts=artifact_links(report.artifacts),
    )


def recipe_text(recipe: Mapping[str, object]) -> str:
    """The recipe as TOML."""
    return tomli_w.dumps({k: v for k, v in recipe.items() if v is not None}).strip()


# --- the parts of the page ------------------------------------------------------------------------


class _Gauge(NamedTuple):
    fill: str
    low: str
    spread: str
    limit: str
    limit_anchor: str
    dense: str
    dense_anchor: str


def _gauge(report: Report) -> _Gauge:
    """The measured ratio on the way from nothing to the dense network."""
    latency = report.latency
    low, high = latency.ratio_ci
    scale = Scale(0.0, max(1.0, latency.limit_ratio, high))
    return _Gauge(
        fill=scale(latency.ratio),
        low=scale(low),
        spread=scale.span(low, high),
        limit=scale(latency.limit_ratio),
        limit_anchor=scale.anchor(latency.limit_ratio),
        dense=scale(1.0),
        dense_anchor=scale.anchor(1.0),
    )


def _doubt(report: Report) -> str:
    """What the interval says against the verdict; empty where it agrees."""
    latency = report.latency
    if latency.probability is not None:
        return why_open(latency)
    low, high = latency.ratio_ci
    if latency.met and high > latency.limit_ratio:
        return "The interval reaches above the limit: measured again, the target may be missed."
    if not latency.met and low <= latency.limit_ratio:
        return "The interval reaches below the limit: measured again, the target may be met."
    return ""


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """(what, value, detail) of the numbers a reader asks for first."""
    latency, accuracy, macs = report.latency, report.accuracy, report.macs
    tiles = [
        (
            "speed-up",
            f"{1 / latency.ratio:.2f}x",
            f"{latency.dense_ms:.3f} → {latency.pruned_ms:.3f} ms",
        )
    ]
    metric = accuracy.measure
    name = "top-1 accuracy" if metric.name == "top-1" else metric.name
    if accuracy.pruned is None:
        tiles.append(("accuracy", "–", "not measured: no data"))
    elif accuracy.dense is None:
        tiles.append((name, metric.text(accuracy.pruned), "dense not trained"))
    else:
        tiles.append(
            (
                name,
                metric.apart(accuracy.dense, accuracy.pruned).replace("-", "−"),
                f"{metric.text(accuracy.dense)} → {metric.text(accuracy.pruned)}",
            )
        )
    tiles.append(
        (
            "MACs left",
            f"{macs.pruned / macs.dense:.0%}",
            f"{_count(macs.dense)} → {_count(macs.pruned)}",
        )
    )
    return tiles


class _Mark(NamedTuple):
    """One row of the landing chart; positions, and the same in words."""

    label: str
    middle: float
    asked: str
    predicted: str
    ratio: str
    low: str
    high: str
    over: bool
    measured_text: str
    words: str


class _LandingChart(NamedTuple):
    marks: list[_Mark]
    height: int
    limit: str
    beyond: str
    ticks: list[tuple[str, str]]
    rows: list[tuple[str, str, str, str, str]]


ROW = 36
"""Height of a row of the landing chart in pixels."""


def _landing(report: Report) -> _LandingChart:
    """Every plan that was measured, and the final measurement of the exported files."""
    latency, limit = report.latency, report.latency.limit_ratio
    # a request of zero means "the smallest plan there is": no place on the axis
    points = [(a.asked or None, a.predicted, a.ratio, a.ratio_ci) for a in report.landing]
    every = [p for asked, *rest in points for p in (asked, *rest[:2]) if isinstance(p, float)]
    every += [end for *_, ends in points for end in ends]
    scale = scale_around([*every, limit, latency.ratio, *latency.ratio_ci])
    marks, rows = [], []
    for number, (asked, predicted, ratio, ends) in enumerate(
        [*points, (None, None, latency.ratio, latency.ratio_ci)]
    ):
        final = number == len(points)
        chosen = not final and report.landing[number].chosen
        label = "final" if final else f"plan {number + 1}"
        asked_text = f"{asked:.1%}" if asked else "–" if final else "smallest"
        predicted_text = "–" if predicted is None else f"{predicted:.1%}"
        interval = f"[{ends[0]:.1%}, {ends[1]:.1%}]"
        measured = f"measured {ratio:.1%} {interval}"
        words = f"asked {asked_text}, predicted {predicted_text}, {measured}"
        marks.append(
            _Mark(
                label=f"\N{CHECK MARK} {label}" if chosen else label,
                middle=(number + 0.5) * ROW,
                asked=scale(asked) if asked else "",
                predicted="" if predicted is None else scale(predicted),
                ratio=scale(ratio),
                low=scale(ends[0]),
                high=scale(ends[1]),
                over=ratio > limit,
                measured_text=f"{ratio:.1%}",
                words=f"{label}: {measured if final else words}",
            )
        )
        row = f"{label} (chosen)" if chosen else label
        rows.append((row, asked_text, predicted_text, f"{ratio:.1%}", interval))
    ticks = scale.ticks()
    return _LandingChart(
        marks=marks,
        height=len(marks) * ROW,
        limit=scale(limit),
        beyond=scale.span(limit, scale.high),
        ticks=list(zip(map(scale, ticks), tick_texts(ticks), strict=True)),
        rows=rows,
    )


class _Width(NamedTuple):
    name: str
    before: int
    after: int
    share: float
    saliency: str
    saved: str
    least: bool
    x: str
    before_height: str
    before_top: str
    after_height: str
    after_top: str


class _WidthChart(NamedTuple):
    rows: list[_Width]
    columns: list[list[_Width]]
    bar: str
    highest: int
    before: int
    after: int
    untouched: int
    least: int
    explained: bool


def _change(group: GroupPart | None) -> dict[str, Any]:
    """What is told of a group besides its widths; reports of earlier versions have nothing."""
    if group is None:
        return {"saliency": "", "saved": "", "least": False}
    return {
        "saliency": "–" if group.saliency is None else f"{group.saliency:.0%}",
        "saved": f"{group.saved_ms:.3f}" if group.after < group.before else "–",
        "least": group.at_minimum,
    }


def _widths(report: Report) -> _WidthChart:
    """Widths in the order of the network: a skyline of channels, and a bar per group."""
    highest = max((before for before, _ in report.widths.values()), default=1)
    across, up = Scale(0, max(1, len(report.widths))), Scale(0, highest)
    rows = [
        _Width(
            name=name,
            before=before,
            after=after,
            share=after / before,
            **_change(report.groups.get(name)),
            x=across(index + 0.1),
            before_height=up(before),
            before_top=up(highest - before),
            after_height=up(after),
            after_top=up(highest - after),
        )
        for index, (name, (before, after)) in enumerate(report.widths.items())
    ]
    return _WidthChart(
        rows=rows,
        columns=_halves(rows),
        bar=across(0.8),
        highest=highest,
        before=sum(row.before for row in rows),
        after=sum(row.after for row in rows),
        untouched=sum(row.before == row.after for row in rows),
        least=sum(row.least for row in rows),
        explained=bool(report.groups),
    )


Facts = list[tuple[str, str]]


def _facts(report: Report) -> list[tuple[str, Facts]]:
    """What it takes to believe a run or to repeat it, in titled lists; empty facts are left out."""
    latency, allocation, table = report.latency, report.allocation, report.table
    off = latency.predicted_ms / latency.pruned_ms - 1
    sections = [
        ("Environment", environment_facts(report.environment)),
        (
            "Measurement",
            [
                ("target", report.target.describe()),
                ("budget", f"{report.budget.kind} {report.budget.requested}"),
                ("limit", f"{report.budget.limit_ms:.3f} ms ({latency.limit_ratio:.1%} of dense)"),
                ("order", "dense and pruned interleaved in one run"),
                ("sessions", str(latency.sessions or "")),
                ("rounds", str(latency.rounds)),
                ("statistic", f"medians, {latency.confidence:.0%} intervals"),
                ("within the limit", _probability(latency)),
                ("cut after training", f"{latency.mended} times" if latency.mended else ""),
            ],
        ),
        (
            "Latency table",
            [
                ("source", table.source),
                ("networks", str(table.nets)),
                ("rounds", str(table.rounds)),
                ("error on networks left out", table.error),
                ("this network", f"predicted {latency.predicted_ms:.3f} ms, {_off(off)}"),
            ],
        ),
        (
            "Allocation",
            [
                ("method", allocation.method),
                ("criterion", allocation.criterion),
                ("solver", f"{allocation.solver}, {allocation.status}"),
                ("gap to optimum", f"{allocation.gap:.4%}"),
                ("granularity", f"{allocation.granularity} channels"),
                ("saliency kept", f"{allocation.value:.1%}"),
                ("seed", str(report.seed)),
            ],
        ),
        ("Training cost", cost_facts(report.training_cost)),
        ("Seconds", [(stage, f"{spent:.1f}") for stage, spent in report.seconds.items()]),
        ("Versions", list(report.versions.items())),
    ]
    return without_empty(sections)


def _probability(latency: LatencyPart) -> str:
    if latency.probability is None:
        return ""
    return f"probability {chance(latency.probability)}, asked for {latency.sure:.0%}"


def without_empty(sections: list[tuple[str, Facts]]) -> list[tuple[str, Facts]]:
    """The sections without facts that say nothing."""
    return [(title, [fact for fact in facts if fact[1]]) for title, facts in sections]


def cost_facts(cost: TrainingPart) -> Facts:
    """What the training took."""
    if cost.relative_flops is None:
        return [("training", "none")]
    facts = [("compute", f"{cost.relative_flops:.2f}x the FLOPs of one dense training run")]
    if cost.seconds:
        facts.append(("time", duration(cost.seconds)))
    if cost.dense_seconds:
        facts.append(("of it, dense", duration(cost.dense_seconds)))
    return facts


def environment_facts(where: target.Environment) -> Facts:
    """The machine and the runtime."""
    return [
        ("device", where.device_name),
        ("runtime", where.runtime_version),
        ("driver", where.driver),
        ("clocks", where.clocks),
        ("machine", where.machine),
        ("cores", str(where.cores or "")),
        ("vector sets", " ".join(where.isa)),
        ("system", where.os),
        ("Python", where.python),
        *where.packages.items(),
        ("measured", where.created.replace("T", " ").replace("Z", " UTC")),
    ]


class _Artifact(NamedTuple):
    what: str
    text: str
    link: str


def artifact_links(artifacts: dict[str, str]) -> list[_Artifact]:
    """Files of the run folder by their relative path, as links; the folder may have moved since."""
    paths = {what: PurePath(path) for what, path in artifacts.items()}
    known = [paths[what] for what in ("recipe", "plan", "onnx", "weights") if what in paths]
    run = known[0].parent if known else None
    links = []
    for what, path in paths.items():
        inside = run is not None and path.is_relative_to(run) and ".." not in path.parts
        text = path.relative_to(run).as_posix() if run is not None and inside else str(path)
        links.append(_Artifact(what.replace("_", " "), text, quote(text) if inside else ""))
    return links


# --- small things ---------------------------------------------------------------------------------


def _split_interval(text: str) -> tuple[str, str]:
    """``1.2 [1.1, 1.3]`` as the value and its interval."""
    value, bracket, interval = text.partition(" [")
    return value, bracket.strip() + interval


def _halves(rows: list[_T]) -> list[list[_T]]:
    """One column, or two where the list is long."""
    if len(rows) < TWO_COLUMNS_FROM:
        return [rows] if rows else []
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]


def _count(number: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {letter}"
    return str(number)


def _off(error: float) -> str:
    if abs(error) < 5e-4:
        return "as measured"
    return f"{abs(error):.1%} {'above' if error > 0 else 'below'} the measured"
