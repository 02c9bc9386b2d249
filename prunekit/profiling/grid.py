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

import numpy as np

from prunekit.core.graph import ChannelGraph, Layer, LayerShape
from prunekit.core.target import Target
from prunekit.core.timing import lower_mean
from prunekit.exporting import lowered_for
from prunekit.latency import Entry, LatencyTable, Sample
from prunekit.latency.calibration import fit_surfaces
from prunekit.latency.transfer import layers_us
from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.collecting import collect
from prunekit.profiling.harvest import entries_of, networks_of, protocol, quartile_range
from prunekit.profiling.journal import Facts, Journal, journal_of
from prunekit.profiling.measuring import runs_per_turn
from prunekit.profiling.operators import operator
from prunekit.profiling.probing import probe
from prunekit.profiling.request import HarvestPlan, ProfileRequest
from prunekit.profiling.rounds import speeds
from prunekit.profiling.transferring import TRANSFER_NETS
from prunekit.runtimes import Runtime, runtime_for
from prunekit.support.progress import bar, say

AT_ONCE = 24
"""Operators that are loaded together and take turns."""
TURNS, TURN_MS = 6, 6.0
NETS_SHARE = 0.25
"""Of the time, for the whole networks that the sums are calibrated by."""


Times = tuple[float, float, int]
"""Microseconds, their spread (IQR) and runs."""


@dataclass(frozen=True)
class Point:
    """One operator of the grid."""

    shape: LayerShape
    cin: int
    cout: int
    groups: int = 1


@dataclass(frozen=True)
class Axis:
    """The widths of one layer shape, and how many calls of layers have it."""

    ins: list[int]
    outs: list[int]
    calls: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Operators that took turns, as a line of the journal; ``seconds`` is when they were done.

    Each operator is the number of its shape, its widths, microseconds, their spread and the runs.
    """

    round: int = 0
    seconds: float
    operators: list[tuple[int, int, int, float, float, int]]


def grid(request: ProfileRequest) -> LatencyTable:
    """A table of single operators, calibrated by a few whole networks timed end to end.

    Ends after ``plan.max_seconds``, or when every width of every layer has been measured. Every
    batch of operators goes to the journal at once.
    """
    graph, target, plan = request.graph, request.target, request.plan
    runtime = runtime_for(target)
    probed = None if request.granularity else probe(target, request.journal, request.resume)
    block = request.granularity or (probed.granularity if probed else 1)
    environment = runtime.environment(target)
    journal = journal_of(request, runtime, block, Facts(source="grid", probe=probed), Batch)
    fewer = HarvestPlan(
        nets=TRANSFER_NETS, seed=plan.seed, max_seconds=NETS_SHARE * plan.max_seconds
    )
    plans = sample_plans(graph, block, fewer.nets, fewer.seed)
    operators = _Operators(_axes(graph, block), block)
    batches = operators.resume(journal) if journal is not None and request.resume else []
    if journal is not None and not batches:
        journal.start()
    count = _measure(
        operators, runtime, target, (1 - NETS_SHARE) * plan.max_seconds, batches, journal
    )
    entries = entries_of(operators.samples)
    whole_networks = replace(request, plan=fewer, journal=None, resume=False)
    collection = collect(whole_networks, plans, block, Facts(), watched=False)
    if collection.stopped != "all rounds":
        collection.stopped = f"{plan.max_seconds:g} s"
    slow = speeds(collection.rounds)
    measured_by = replace(protocol("grid", collection, fewer, slow), asked=None)
    bare = LatencyTable(
        target, environment, measured_by, block, (graph.fingerprint,), entries, networks=()
    )
    priced = [layers_us(bare, graph, chosen.widths) for chosen in plans]
    networks = networks_of(request, collection, slow, priced)
    measured = sum(map(len, operators.samples.values()))
    say(f"grid: {measured} operators of {len(entries)} layer shapes in {count} batches")
    return replace(bare, networks=networks, probe=probed).calibrated()


def _axes(graph: ChannelGraph, block: int) -> dict[LayerShape, Axis]:
    least = graph.smallest_widths(block)
    alike: dict[LayerShape, list[Layer]] = defaultdict(list)
    for layer in graph.layers:
        alike[layer.shape].append(layer)
    return {
        shape: Axis(
            ins=_steps(
                min(x.width("in", least) for x in layers), max(x.in_channels for x in layers), block
            ),
            outs=_steps(
                min(x.width("out", least) for x in layers),
                max(x.out_channels for x in layers),
                block,
            ),
            calls=float(sum(x.calls for x in layers)),
        )
        for shape, layers in alike.items()
    }


def _steps(low: int, high: int, block: int) -> list[int]:
    inside = range(-(-low // block) * block, high, block)
    return sorted({low, *inside, high})


class _Operators:
    """Samples of single operators so far, and which are next."""

    def __init__(self, axes: dict[LayerShape, Axis], block: int) -> None:
        self.axes, self.block = axes, block
        self.shapes = sorted(axes, key=str)
        self.samples: dict[LayerShape, list[Sample]] = {shape: [] for shape in self.shapes}

    def resume(self, journal: Journal[Batch]) -> list[Batch]:
        """Take over what the journal has."""
        batches = journal.resume()
        for batch in batches:
            for number, cin, cout, us, spread_us, runs in batch.operators:
                sample = Sample(0, cin, cout, us, spread_us, runs)
                self.samples[self.shapes[number]].append(sample)
        return batches

    def add(self, points: list[Point], times: list[Times]) -> Batch:
        """Take over a batch's times; gives its line of the journal, without numbers of its own."""
        operators = []
        for point, (us, spread_us, runs) in zip(points, times, strict=True):
            self.samples[point.shape].append(Sample(0, point.cin, point.cout, us, spread_us, runs))
            number = self.shapes.index(point.shape)
            operators.append((number, point.cin, point.cout, us, spread_us, runs))
        return Batch(seconds=0.0, operators=operators)

    def next(self) -> list[Point]:
        """Corners and middles first, then where the most time is uncertain."""
        missing = []
        for shape in self.axes:
            have = self._measured(shape)
            missing += [p for p in _first(self._points(shape)) if (p.cin, p.cout) not in have]
        if missing:
            return missing[:AT_ONCE]
        fitted = fit_surfaces((Entry(s, tuple(x)) for s, x in self.samples.items()), self.block)
        worth: list[tuple[float, int, Point]] = []
        for shape, axis in self.axes.items():
            have = self._measured(shape)
            points = [p for p in self._points(shape) if (p.cin, p.cout) not in have]
            if not points:
                continue
            cin, cout = np.array([(p.cin, p.cout) for p in points]).T
            unsure = axis.calls * fitted[shape].us(cin, cout) * fitted[shape].deviation(cin, cout)
            best = np.argsort(-unsure)[: max(1, AT_ONCE // len(self.axes))]
            worth += [(float(unsure[i]), len(worth) + n, points[i]) for n, i in enumerate(best)]
        return [point for *_, point in sorted(worth, key=lambda w: (-w[0], w[1]))[:AT_ONCE]]

    def _measured(self, shape: LayerShape) -> set[tuple[int, int]]:
        return {(sample.cin, sample.cout) for sample in self.samples[shape]}

    def _points(self, shape: LayerShape) -> list[Point]:
        return _points(shape, self.axes[shape].ins, self.axes[shape].outs)


def _measure(
    operators: _Operators,
    runtime: Runtime,
    target: Target,
    seconds: float,
    batches: list[Batch],
    journal: Journal[Batch] | None,
) -> int:
    """Batch after batch, behind those of the journal, until the time is over; their number."""
    count = len(batches)
    started = time.monotonic() - (batches[-1].seconds if batches else 0.0)
    with bar("operators, seconds", seconds) as shown, tempfile.TemporaryDirectory() as folder:
        before = 0.0
        while points := operators.next():
            elapsed = time.monotonic() - started
            shown.advance(min(elapsed, seconds) - before)
            before = min(elapsed, seconds)
            if elapsed > seconds and all(operators.samples.values()):
                break
            times = time_operators(runtime, target, points, Path(folder), count)
            batch = operators.add(points, times)
            count += 1
            if journal is not None:
                ended = round(time.monotonic() - started, 3)
                journal.append(replace(batch, round=count, seconds=ended))
    return count


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
) -> list[Times]:
    """What every operator takes alone, taking turns."""
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
            round(1e3 * lower_mean(samples_ms), 3),
            round(1e3 * quartile_range(samples_ms), 3),
            len(samples_ms),
        )
        for samples_ms in times
    ]
