"""The rounds of a profile: networks take turns, watched by the profiler and plain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.measuring.interleaved import switch_counter, timed_runs
from prunekit.profiling.request import HarvestPlan
from prunekit.profiling.rounds import Round
from prunekit.runtimes import Engine, Profiler, Runtime
from prunekit.support.errors import NoLayerTimesError

WARM_UP_RUNS = 3
FEWEST_RUNS = 2
"""In a turn."""
LONG_MS = 100.0
LONG_TURNS = 3
"""No more turns in a round where the dense network takes longer than that: a run is an average over
many of the machine's moods already, and rounds should be several."""

V = TypeVar("V")
LayerTimes = dict[str, float]
"""What one run spent in each layer."""


@dataclass
class _Loaded:
    """A network, its engine, how long that took to load, and how often it runs in a turn."""

    artifact: Artifact
    engine: Engine
    load_seconds: float
    runs: int = 0


@dataclass(frozen=True)
class _Samples:
    """What a round gave of every network, each with whether nothing interrupted it."""

    plain: dict[int, list[tuple[float, bool]]]
    watched: dict[int, list[bool]]
    """Of the profiler's runs; what they took it tells at its end."""
    layers: dict[int, list[LayerTimes]]


class Rounds:
    """Networks that take turns, each loaded with a profiler of its own for every round.

    Where buffers lie in memory moves a network's latency by one to two percent for as long as it
    is loaded. Where loading is not cheap only the first one, the dense one, is loaded anew: all
    others are compared with it. Networks that are not ``watched`` are timed end to end only.
    """

    def __init__(
        self, runtime: Runtime, target: Target, plan: HarvestPlan, watched: bool = True
    ) -> None:
        self._runtime, self._target, self._plan = runtime, target, plan
        self._watched = watched
        self._loaded: dict[int, _Loaded] = {}
        self._last_seconds = 0.0

    def add(self, number: int, artifact: Artifact) -> None:
        """Load a network, unless it is there."""
        if number not in self._loaded:
            net = self._load(number, artifact)
            net.runs = runs_per_turn(net.engine, self._plan.turn_ms)

    def _load(self, number: int, artifact: Artifact) -> _Loaded:
        began = time.perf_counter()
        engine = self._runtime.load(artifact, self._target)
        net = _Loaded(artifact, engine, time.perf_counter() - began)
        self._loaded[number] = net
        return net

    def _load_anew(self, number: int) -> Engine:
        artifact, runs = self._loaded[number].artifact, self._loaded[number].runs
        self.drop(number)
        net = self._load(number, artifact)
        net.runs = runs
        return net.engine

    def drop(self, number: int) -> None:
        """Free a network that no round will need."""
        if net := self._loaded.pop(number, None):
            net.engine.close()

    def close(self) -> None:
        """Free all networks."""
        for number in list(self._loaded):
            self.drop(number)

    def run(self, number: int, nets: Sequence[int]) -> Round:
        """Round ``number`` over ``nets`` in shuffled order, several times.

        The first run of a turn finds the caches full of another network and does not count, and
        neither do runs that another process interrupted, where enough are left. Plain turns do
        not follow a network's watched one: after its profiler it runs up to 6 % slower.
        """
        rng = np.random.default_rng((self._plan.seed, number))
        turns = self._turns(nets, rng)
        began = time.perf_counter()
        samples = _Samples({net: [] for net in nets}, {net: [] for net in nets}, {})
        profilers: dict[int, Profiler] = {}
        try:
            self._open_profilers(nets if self._watched else (), profilers)
            self._take_turns(turns, profilers, samples, rng)
            while profilers:
                net, profiler = profilers.popitem()
                samples.layers[net] = profiler.finish()
        finally:
            for profiler in profilers.values():  # only after an error or an interrupt
                with suppress(Exception):
                    profiler.finish()
        self._last_seconds = time.perf_counter() - began
        undisturbed = [good for runs in samples.plain.values() for _, good in runs]
        watched = [net for net in nets if net in samples.layers]
        return Round(
            round=number,
            nets=list(nets),
            turns=turns,
            disturbed=round(1 - sum(undisturbed) / len(undisturbed), 4),
            end_to_end_ms=[_kept(samples.plain[net]) for net in nets],
            layers_us=[
                _by_layer(_kept(_paired(samples.layers[net], samples.watched[net])))
                for net in watched
            ],
            added=[],
            seconds=0.0,
        )

    def _turns(self, nets: Sequence[int], rng: np.random.Generator) -> int:
        """Load anew what the next round does; how many turns it has."""
        loading = sum(self._loaded[net].load_seconds for net in nets)
        cheap = loading < self._plan.anew * self._last_seconds
        slowest_ms = 0.0
        for net in rng.permutation(list(nets) if cheap else nets[:1]).tolist():
            slowest_ms = max(slowest_ms, self._load_anew(net).time(WARM_UP_RUNS)[-1])
        return self._plan.turns if slowest_ms <= LONG_MS else min(LONG_TURNS, self._plan.turns)

    def _open_profilers(self, nets: Sequence[int], profilers: dict[int, Profiler]) -> None:
        for net in nets:
            profiler = self._runtime.profiler(self._loaded[net].artifact, self._target)
            if profiler is None:
                raise NoLayerTimesError(
                    f"{self._target} tells no times of layers; profile with --source differences"
                )
            profilers[net] = profiler

    def _take_turns(
        self,
        turns: int,
        profilers: dict[int, Profiler],
        samples: _Samples,
        rng: np.random.Generator,
    ) -> None:
        switches = switch_counter(self._target.threads)
        last = None
        for _ in range(turns):
            order = rng.permutation(list(samples.plain)).tolist()
            if order[0] == last:
                order.append(order.pop(0))
            for net in order:
                loaded = self._loaded[net]
                loaded.engine.time(1)
                samples.plain[net] += timed_runs(loaded.engine, loaded.runs, switches)
            for net in rng.permutation(list(profilers)).tolist():
                runs = self._loaded[net].runs
                samples.watched[net] += _watched_turn(profilers[net], runs, switches)
                last = net


def runs_per_turn(engine: Engine, turn_ms: float) -> int:
    """How often a network runs in one turn, after a warm-up."""
    if engine.time(WARM_UP_RUNS)[-1] > turn_ms:
        return FEWEST_RUNS
    typical = float(np.median(engine.time(4)))
    return int(np.clip(round(turn_ms / max(typical, 1e-3)), FEWEST_RUNS, 30))


def _watched_turn(profiler: Profiler, runs: int, switches: Callable[[], int]) -> list[bool]:
    """Whether each run was undisturbed; the first does not count."""
    profiler.run(1)
    undisturbed = [False]
    for _ in range(runs):
        before = switches()
        profiler.run(1)
        undisturbed.append(switches() == before)
    return undisturbed


def _paired(runs: list[V], flags: list[bool]) -> list[tuple[V, bool]]:
    """Runs with whether they were undisturbed; a profiler may leave out or add one at the start."""
    count = min(len(runs), len(flags))
    return list(zip(runs[-count:], flags[-count:], strict=True))


def _kept(samples: list[tuple[V, bool]]) -> list[V]:
    """The undisturbed samples, or all where fewer than a third are."""
    undisturbed = [value for value, good in samples if good]
    if 3 * len(undisturbed) >= len(samples):
        return undisturbed
    return [value for value, _ in samples]


def _by_layer(runs: list[LayerTimes]) -> dict[str, list[float]]:
    names = sorted({name for run in runs for name in run})
    return {name: [round(run.get(name, 0.0), 3) for run in runs] for name in names}
