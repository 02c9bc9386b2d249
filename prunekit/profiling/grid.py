"""The classic table: every layer timed alone, at a grid of widths.

What HALP and others build on. The grid is adaptive: after the corners and the middle of every
layer shape it goes where the surfaces are least sure of most time. Single operators do not see the
caches, fusions and layouts of a whole network, so a harvest of the same length predicts better;
this is here for comparison, and for runtimes that give no times per layer.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph, Layer, LayerShape
from prunekit.core.target import Target
from prunekit.core.timing import lower_mean
from prunekit.exporting import lowered_for
from prunekit.latency import Entry, LatencyTable, Sample
from prunekit.latency.calibration import fit_surfaces
from prunekit.latency.transfer import layers_us
from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.collecting import collect, journal_of
from prunekit.profiling.harvest import entries_of, networks_of, protocol, quartile_range
from prunekit.profiling.journal import Journal
from prunekit.profiling.measuring import HarvestPlan, runs_per_turn, speeds
from prunekit.profiling.operators import operator
from prunekit.profiling.probing import probe, started_with
from prunekit.profiling.transferring import TRANSFER_NETS
from prunekit.runtimes import Runtime, runtime_for
from prunekit.support.progress import bar, say

AT_ONCE = 24
"""Operators that are loaded together and take turns."""
TURNS, TURN_MS = 6, 6.0
NETS_SHARE = 0.25
"""Of the time, for the whole networks that the sums are calibrated by."""


@dataclass(frozen=True)
class Point:
    """One operator of the grid."""

    shape: LayerShape
    cin: int
    cout: int
    groups: int = 1


def grid(
    model: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target | str,
    *,
    plan: HarvestPlan | None = None,
    name: str = "",
    granularity: int | None = None,
    journal: Path | None = None,
    resume: bool = False,
    dense: Artifact | None = None,
) -> LatencyTable:
    """A table of single operators, calibrated by a few whole networks timed end to end.

    Ends after ``plan.max_seconds``, or when every width of every layer has been measured. Every
    batch of operators goes to ``journal`` at once.
    """
    wanted = plan or HarvestPlan()
    target = Target.of(target)
    runtime = runtime_for(target)
    probed = None if granularity else probe(target, journal, resume)
    block = granularity or (probed.granularity if probed else 1)
    environment = runtime.environment(target)
    axes = _axes(graph, block)
    log = journal_of(
        journal, graph, target, runtime, wanted, block, {"source": "grid"} | started_with(probed)
    )
    fewer = HarvestPlan(
        nets=TRANSFER_NETS, seed=wanted.seed, max_seconds=NETS_SHARE * wanted.max_seconds
    )
    plans = sample_plans(graph, block, fewer.nets, fewer.seed)
    samples, batches = _operators(runtime, target, axes, block, wanted, log, resume)
    entries = entries_of(samples)
    found = collect(
        *(model, graph, example, target, plans, fewer, block, {}),
        journal=None,
        resume=False,
        dense=dense,
        watched=False,
    )
    if found.stopped != "all rounds":
        found.stopped = f"{wanted.max_seconds:g} s"
    slow = speeds(found.rows)
    how = replace(protocol("grid", found, fewer, slow), asked=None)
    bare = LatencyTable(target, environment, how, block, (graph.fingerprint,), entries, networks=())
    priced = [layers_us(bare, graph, chosen.widths) for chosen in plans]
    networks = networks_of(name, graph, found, slow, priced)
    count = sum(map(len, samples.values()))
    say(f"grid: {count} operators of {len(entries)} layer shapes in {batches} batches")
    return replace(bare, networks=networks, probe=probed).calibrated()


def _axes(graph: ChannelGraph, block: int) -> dict[LayerShape, tuple[list[int], list[int], float]]:
    """Per layer shape: in-widths, out-widths, and how many calls of layers have it."""
    least = graph.smallest_widths(block)
    alike: dict[LayerShape, list[Layer]] = defaultdict(list)
    for layer in graph.layers:
        alike[layer.shape].append(layer)
    return {
        shape: (
            _steps(
                min(x.width("in", least) for x in found), max(x.in_channels for x in found), block
            ),
            _steps(
                min(x.width("out", least) for x in found), max(x.out_channels for x in found), block
            ),
            float(sum(x.calls for x in found)),
        )
        for shape, found in alike.items()
    }


def _steps(low: int, high: int, block: int) -> list[int]:
    inside = range(-(-low // block) * block, high, block)
    return sorted({low, *inside, high})


def _operators(
    runtime: Runtime,
    target: Target,
    axes: dict[LayerShape, tuple[list[int], list[int], float]],
    block: int,
    wanted: HarvestPlan,
    log: Journal | None,
    resume: bool,
) -> tuple[dict[LayerShape, list[Sample]], int]:
    """Samples of single operators, batch after batch, and how many batches there were."""
    shapes = sorted(axes, key=str)
    samples: dict[LayerShape, list[Sample]] = {shape: [] for shape in shapes}
    rows = (
        log.resume({"operators": list, "seconds": (int, float)})
        if log is not None and resume
        else []
    )
    if log is not None and not rows:
        log.start()
    for row in rows:
        for number, *values in row["operators"]:
            samples[shapes[number]].append(Sample(0, *values))
    batches = len(rows)
    started = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)
    seconds = (1 - NETS_SHARE) * wanted.max_seconds
    with bar("operators, seconds", seconds) as shown, tempfile.TemporaryDirectory() as folder:
        before = 0.0
        while points := _next(axes, samples, block):
            elapsed = time.monotonic() - started
            shown.advance(min(elapsed, seconds) - before)
            before = min(elapsed, seconds)
            if elapsed > seconds and all(samples.values()):
                break
            times = time_operators(runtime, target, points, Path(folder), batches)
            found = [
                (shapes.index(point.shape), Sample(0, point.cin, point.cout, *values))
                for point, values in zip(points, times, strict=True)
            ]
            for number, sample in found:
                samples[shapes[number]].append(sample)
            batches += 1
            if log is not None:
                log.append(
                    {
                        "round": batches,
                        "seconds": round(time.monotonic() - started, 3),
                        "operators": [
                            [n, s.cin, s.cout, s.us, s.spread_us, s.runs] for n, s in found
                        ],
                    }
                )
    return samples, batches


def _next(
    axes: dict[LayerShape, tuple[list[int], list[int], float]],
    samples: dict[LayerShape, list[Sample]],
    block: int,
) -> list[Point]:
    """The next operators: corners and middles first, then where the most time is uncertain."""
    missing = []
    for shape, (left, right, _) in axes.items():
        have = {(s.cin, s.cout) for s in samples[shape]}
        missing += [p for p in _first(_points(shape, left, right)) if (p.cin, p.cout) not in have]
    if missing:
        return missing[:AT_ONCE]
    fitted = fit_surfaces((Entry(s, tuple(found)) for s, found in samples.items()), block)
    worth: list[tuple[float, int, Point]] = []
    for shape, (left, right, calls) in axes.items():
        have = {(s.cin, s.cout) for s in samples[shape]}
        points = [p for p in _points(shape, left, right) if (p.cin, p.cout) not in have]
        if not points:
            continue
        cin, cout = np.array([(p.cin, p.cout) for p in points]).T
        unsure = calls * fitted[shape].us(cin, cout) * fitted[shape].deviation(cin, cout)
        best = np.argsort(-unsure)[: max(1, AT_ONCE // len(axes))]
        worth += [(float(unsure[i]), len(worth) + n, points[i]) for n, i in enumerate(best)]
    return [point for *_, point in sorted(worth, key=lambda w: (-w[0], w[1]))[:AT_ONCE]]


def _points(shape: LayerShape, left: list[int], right: list[int]) -> list[Point]:
    """All points of a shape's grid; of grouped layers whole groups go, each as wide as ever."""
    if shape.kind == "depthwise":
        return [Point(shape, width, width) for width in right]
    if shape.groups > 1:
        into, out = left[-1] // shape.groups, right[-1] // shape.groups
        return [Point(shape, k * into, k * out, k) for k in range(1, shape.groups + 1)]
    return [Point(shape, cin, cout) for cin, cout in product(left, right)]


def _first(points: list[Point]) -> list[Point]:
    """Those with the least, the middle (by ratio) and the most of every width."""
    ends = [_few(sorted({getattr(p, side) for p in points})) for side in ("cin", "cout")]
    if len({p.cin for p in points}) == len(points):  # one width gives the other
        return [p for p in points if p.cin in ends[0]]
    return [p for p in points if p.cin in ends[0] and p.cout in ends[1]]


def _few(widths: list[int]) -> list[int]:
    middle = min(widths, key=lambda w: abs(np.log(w / np.sqrt(widths[0] * widths[-1]))))
    return sorted({widths[0], middle, widths[-1]})


def time_operators(
    runtime: Runtime, target: Target, points: list[Point], folder: Path, seed: int
) -> list[tuple[float, float, int]]:
    """Microseconds, their spread (IQR) and runs of every operator alone, taking turns."""
    live = runtime.artifact_format == "module"
    engines = []
    try:
        for number, point in enumerate(points):
            path = folder / f"operator{number}.onnx"
            shape = replace(point.shape, groups=point.groups)
            made = operator(shape, point.cin, point.cout, target, live, path)
            made = lowered_for(made, runtime, target, path.with_suffix(".lowered.onnx"))
            engines.append(runtime.load(made, target))
        runs = [runs_per_turn(engine, TURN_MS) for engine in engines]
        times: list[list[float]] = [[] for _ in engines]
        rng = np.random.default_rng((seed, len(points)))
        for _ in range(TURNS):
            for i in rng.permutation(len(engines)).tolist():
                engines[i].time(1)
                times[i] += engines[i].time(runs[i])
    finally:
        for engine in engines:
            engine.close()
    return [
        (
            round(1e3 * lower_mean(found), 3),
            round(1e3 * quartile_range(found), 3),
            len(found),
        )
        for found in times
    ]
