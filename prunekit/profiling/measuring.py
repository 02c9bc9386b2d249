"""The rounds of a profile: networks take turns, watched by the profiler and plain."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.core.timing import lower_mean
from prunekit.measuring.interleaved import switch_counter
from prunekit.runtimes import Engine, Profiler, Runtime
from prunekit.support.errors import NoLayerTimesError, UsageError

WARM_UP_RUNS = 3
FEWEST_RUNS = 2
"""In a turn."""
LONG_MS = 100.0
LONG_TURNS = 3
"""No more turns in a round where the dense network takes longer than that: a run is an average over
many of the machine's moods already, and rounds should be several."""
CALM = 1.08
"""A round so much slower than the fastest was in a slow spell of the machine."""
Row = dict[str, Any]
"""One round: ``nets``, their numbers, and one entry per network in every other list."""


@dataclass(frozen=True)
class HarvestPlan:
    """How much to measure: ``nets`` networks (the dense one included), each in ``rounds`` rounds.

    A round gives each network ``turns`` turns of about ``turn_ms``. Half of the networks are drawn
    at random; with ``active`` the others are chosen while measuring, else all are random. It ends
    early when the error on networks left out reaches ``target_error`` or when another round would
    not end within ``max_seconds``, but never before ``min_rounds`` rounds. A network is loaded anew
    for a round where that takes at most the share ``anew`` of it. ``shard`` (number from 1, count)
    takes a share of the networks, none of them chosen.
    """

    nets: int = 12
    rounds: int = 8
    turns: int = 4
    seed: int = 0
    max_seconds: float = 120.0
    min_rounds: int = 2
    shard: tuple[int, int] = (1, 1)
    active: bool = True
    target_error: float = 0.0
    turn_ms: float = 12.0
    anew: float = 0.15

    def __post_init__(self) -> None:
        for name, least in (("nets", 2), ("rounds", 1), ("turns", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"`{name}` is {getattr(self, name)}; the least is {least}")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"`shard` is {self.shard}; write (1, 4) to (4, 4)")
        if math.isnan(self.max_seconds) or not self.target_error >= 0:
            raise UsageError(
                f"`max_seconds` {self.max_seconds:g} and `target_error` {self.target_error:g} must "
                "be numbers, the latter at least 0"
            )


class Rounds:
    """Networks that take turns, each loaded with a profiler of its own for every round.

    Where buffers lie in memory moves a network's latency by one to two percent for as long as it
    is loaded. Where loading is not cheap only the first one, the dense one, is loaded anew: all
    others are compared with it. Networks that are not ``watched`` are timed end to end only.
    """

    def __init__(
        self, runtime: Runtime, target: Target, wanted: HarvestPlan, watched: bool = True
    ) -> None:
        self._runtime, self._target, self._wanted = runtime, target, wanted
        self._watched = watched
        self._artifacts: dict[int, Artifact] = {}
        self._engines: dict[int, Engine] = {}
        self._runs: dict[int, int] = {}
        self._loading: dict[int, float] = {}
        self._lasted = 0.0

    def add(self, number: int, artifact: Artifact) -> None:
        """Load a network, unless it is there."""
        if number not in self._engines:
            self._artifacts[number] = artifact
            engine = self._load(number)
            self._runs[number] = runs_per_turn(engine, self._wanted.turn_ms)

    def _load(self, number: int) -> Engine:
        self.drop(number)
        began = time.perf_counter()
        engine = self._runtime.load(self._artifacts[number], self._target)
        self._loading[number] = time.perf_counter() - began
        self._engines[number] = engine
        return engine

    def drop(self, number: int) -> None:
        """Free a network that no round will need."""
        if engine := self._engines.pop(number, None):
            engine.close()

    def close(self) -> None:
        """Free all networks."""
        for number in list(self._engines):
            self.drop(number)

    def run(self, number: int, nets: Sequence[int]) -> Row:
        """Round ``number`` over ``nets`` in shuffled order, several times.

        The first run of a turn finds the caches full of another network and does not count, and
        neither do runs that another process interrupted, where enough are left. Plain turns do
        not follow a network's watched one: after its profiler it runs up to 6 % slower.
        """
        rng = np.random.default_rng((self._wanted.seed, number))
        cheap = sum(self._loading[i] for i in nets) < self._wanted.anew * self._lasted
        took = 0.0
        for i in rng.permutation(list(nets) if cheap else nets[:1]).tolist():
            took = max(took, self._load(i).time(WARM_UP_RUNS)[-1])
        turns = self._wanted.turns if took <= LONG_MS else min(LONG_TURNS, self._wanted.turns)
        began = time.perf_counter()
        switches = switch_counter(self._target.threads)
        plain: dict[int, list[tuple[float, bool]]] = {i: [] for i in nets}
        watched: dict[int, list[bool]] = {i: [] for i in nets}
        layers: dict[int, list[dict[str, float]]] = {}
        waiting: dict[int, Profiler] = {}
        try:
            for i in nets if self._watched else ():
                profiler = self._runtime.profiler(self._artifacts[i], self._target)
                if profiler is None:
                    raise NoLayerTimesError(
                        f"{self._target} tells no times of layers; "
                        "profile with --source differences"
                    )
                waiting[i] = profiler
            last = None
            for _ in range(turns):
                order = rng.permutation(list(nets)).tolist()
                if order[0] == last:
                    order.append(order.pop(0))
                for i in order:
                    self._engines[i].time(1)
                    for _ in range(self._runs[i]):
                        before = switches()
                        (took,) = self._engines[i].time(1)
                        plain[i].append((took, switches() == before))
                for i in rng.permutation(list(waiting)).tolist():
                    watched[i] += _watched_turn(waiting[i], self._runs[i], switches)
                    last = i
            while waiting:
                i, profiler = waiting.popitem()
                layers[i] = profiler.finish()
        finally:
            for profiler in waiting.values():  # only after an error or an interrupt
                with suppress(Exception):
                    profiler.finish()
        self._lasted = time.perf_counter() - began
        calm = [good for samples in plain.values() for _, good in samples]
        return {
            "round": number,
            "nets": list(nets),
            "turns": turns,
            "disturbed": round(1 - sum(calm) / len(calm), 4),
            "end_to_end_ms": [_kept(plain[i]) for i in nets],
            "layers_us": [
                _by_layer(_kept(_paired(layers[i], watched[i]))) for i in nets if i in layers
            ],
        }


def runs_per_turn(engine: Engine, turn_ms: float) -> int:
    """How often a network runs in one turn, after a warm-up."""
    if engine.time(WARM_UP_RUNS)[-1] > turn_ms:
        return FEWEST_RUNS
    typical = float(np.median(engine.time(4)))
    return int(np.clip(round(turn_ms / max(typical, 1e-3)), FEWEST_RUNS, 30))


def _watched_turn(profiler: Profiler, runs: int, switches: Callable[[], int]) -> list[bool]:
    """Whether each run was undisturbed; the first does not count."""
    profiler.run(1)
    calm = [False]
    for _ in range(runs):
        before = switches()
        profiler.run(1)
        calm.append(switches() == before)
    return calm


def _paired(runs: list[Any], flags: list[bool]) -> list[tuple[Any, bool]]:
    """Runs with whether they were undisturbed; a profiler may leave out or add one at the start."""
    count = min(len(runs), len(flags))
    return list(zip(runs[-count:], flags[-count:], strict=True))


def _kept(samples: list[tuple[Any, bool]]) -> list[Any]:
    """The undisturbed samples, or all where fewer than a third are."""
    calm = [value for value, good in samples if good]
    return calm if 3 * len(calm) >= len(samples) else [value for value, _ in samples]


def _by_layer(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    names = sorted({name for run in runs for name in run})
    return {name: [round(run.get(name, 0.0), 3) for run in runs] for name in names}


# --- what rounds say ----------------------------------------------------------------------------


def speeds(rows: Sequence[Row]) -> NDArray[np.float64]:
    """How slow the device was in each round, relative to the median round; shape (rounds,).

    A network's time is taken for its own level times the round's, fitted by medians (Tukey's
    median polish of the logarithms), so that networks need not be in the same rounds. Those in one
    round only say nothing of it.
    """
    often = Counter(net for row in rows for net in row["nets"])
    times = [
        (net, number, float(np.log(max(lower_mean(samples), 1e-9))))
        for number, row in enumerate(rows)
        for net, samples in zip(row["nets"], row["end_to_end_ms"], strict=True)
        if often[net] > 1
    ]
    effect = np.zeros(len(rows))
    for _ in range(50 if rows else 0):
        levels = _medians((net, t - effect[number]) for net, number, t in times)
        found = _medians((number, t - levels[net]) for net, number, t in times)
        before, effect = effect, np.array([found.get(number, 0.0) for number in range(len(rows))])
        effect -= np.median(effect)
        if np.array_equal(before, effect):  # and so it would stay
            break
    return np.exp(effect)


def _medians(pairs: Any) -> Mapping[int, float]:
    gathered: dict[int, list[float]] = {}
    for key, value in pairs:
        gathered.setdefault(key, []).append(value)
    return {key: float(np.median(values)) for key, values in gathered.items()}


def calm_rounds(rows: Sequence[Row], slow: NDArray[np.float64]) -> list[Row]:
    """The rounds in which the device was about as fast as it ever was."""
    least = slow.min(initial=np.inf)
    return [row for row, factor in zip(rows, slow, strict=True) if factor <= CALM * least]


def typical_us(rounds: Sequence[NDArray[np.float64]]) -> float:
    """What a thing takes, of its times round by round: the median of the lower halves' means.

    Loaded anew it lies elsewhere in memory and is one or two percent faster or slower. The lower
    half of all times would be that of the fastest places, the faster the more rounds there are.
    """
    return float(np.median([lower_mean(times) for times in rounds]))


def end_to_end_us(
    rows: Sequence[Row], slow: NDArray[np.float64], net: int
) -> list[NDArray[np.float64]]:
    """End-to-end times of a network at the median round's speed, by its fastest rounds."""
    return [
        1e3 * np.asarray(row["end_to_end_ms"][place]) / factor
        for row, place, factor in _fastest(rows, slow, net)
    ]


def layers_us(
    rows: Sequence[Row], slow: NDArray[np.float64], net: int
) -> dict[str, list[NDArray[np.float64]]]:
    """Times of every layer of a network at the median round's speed, by its fastest rounds."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for row, place, factor in _fastest(rows, slow, net):
        for name, times in row["layers_us"][place].items():
            if times:
                found.setdefault(name, []).append(np.asarray(times) / factor)
    return found


def _fastest(
    rows: Sequence[Row], slow: NDArray[np.float64], net: int
) -> list[tuple[Row, int, float]]:
    """The network's rounds, its place in them and their factor.

    Only those not much slower than its fastest: a slow spell slows networks by different amounts,
    and so a factor cannot make up for it.
    """
    own = [
        (row, row["nets"].index(net), float(factor))
        for row, factor in zip(rows, slow, strict=True)
        if net in row["nets"]
    ]
    least = min((factor for *_, factor in own), default=1.0)
    return [found for found in own if found[2] <= CALM * least]
