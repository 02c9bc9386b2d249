"""One session: engines of several artifacts that take turns, what disturbs them kept out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.core.timing import interleaved_order
from prunekit.runtimes.base import Engine, Runtime

WARM_UP_MS = 100.0
BLOCK_MS = 12.0
"""How long one artifact runs before it is another's turn."""
BLOCKS = 3
"""Turns of every artifact in a round."""
FEWEST_ROUNDS = 3
"""Of a session whose runs are short; one with long runs may have a single round."""
LONG_ROUND = 0.5
"""Seconds of a round of long runs."""


@dataclass(frozen=True)
class Timings:
    """What a session kept of one artifact: its samples, and the median of each round."""

    samples_ms: tuple[float, ...]
    round_medians_ms: tuple[float, ...]
    dropped: int = 0
    """Samples left out because the system interrupted them."""

    @property
    def median_ms(self) -> float:
        """Of the rounds."""
        return float(np.median(self.round_medians_ms))


@dataclass(frozen=True)
class Session:
    """One loading of all engines, timed: ``lost`` is the share of the time others took."""

    timings: tuple[Timings, ...]
    lost: float
    load_seconds: float
    seconds: float
    """Of the rounds."""

    @property
    def rounds(self) -> int:
        """How often every artifact had its turns."""
        return len(self.timings[0].round_medians_ms)

    def ratio(self, index: int) -> float:
        """Artifact ``index`` over the first: the median over rounds of the two values of each.

        What slows a whole round slows both and cancels.
        """
        first, other = (np.array(self.timings[i].round_medians_ms) for i in (0, index))
        return float(np.exp(np.median(np.log(other) - np.log(first))))


@dataclass
class _Entrant:
    """One artifact: its engine, its runs per turn, and what was kept of them."""

    engine: Engine
    runs: int = 1
    samples_ms: list[float] = field(default_factory=list)
    round_medians_ms: list[float] = field(default_factory=list)
    dropped: int = 0

    def keep(self, samples: list[tuple[float, bool]]) -> None:
        """A round's samples, without the interrupted ones where at least half are left."""
        clean = [ms for ms, undisturbed in samples if undisturbed]
        kept = clean if 2 * len(clean) >= len(samples) else [ms for ms, _ in samples]
        self.dropped += len(samples) - len(kept)
        self.samples_ms += kept
        self.round_medians_ms.append(float(np.median(kept)))

    def timings(self) -> Timings:
        return Timings(tuple(self.samples_ms), tuple(self.round_medians_ms), self.dropped)


class InterleavedTimer:
    """Engines of several artifacts that take turns, from when they are loaded until closed."""

    def __init__(
        self, artifacts: Sequence[Artifact], target: Target, runtime: Runtime, seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._switches = switch_counter(target.threads)
        self._disturbed = self._runs = 0
        self._entrants: dict[int, _Entrant] = {}
        began = time.perf_counter()
        try:
            # In any order, or the same place in memory would always be the same artifact's.
            for index in self._rng.permutation(len(artifacts)).tolist():
                self._entrants[index] = _Entrant(runtime.load(artifacts[index], target))
            self.load_seconds = time.perf_counter() - began
            self._settle, self._blocks, self.round_seconds = self._warm_up()
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> tuple[int, int, float]:
        """Choose how many runs make a turn.

        Gives runs that do not count, turns of a round, and the seconds that one should take.
        """
        typical = {i: _warm_up(e.engine, WARM_UP_MS) for i, e in self._entrants.items()}
        for index, entrant in self._entrants.items():
            entrant.runs = max(1, min(200, round(BLOCK_MS / typical[index])))
        longest = max(typical.values())
        # The first run of a turn finds the caches full of another network; where runs are
        # long enough for that not to matter much, it is not thrown away.
        settle = int(longest < 2 * BLOCK_MS)
        blocks = BLOCKS if longest < 10 * BLOCK_MS else 1
        turn_ms = sum((e.runs + settle) * typical[i] for i, e in self._entrants.items())
        return settle, blocks, blocks * turn_ms / 1e3

    def close(self) -> None:
        """Free the engines."""
        for entrant in self._entrants.values():
            entrant.engine.close()

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._entrants[0].round_medians_ms)

    def rounds_in(self, seconds: float) -> int:
        """How many rounds a session of so many seconds has."""
        fewest = FEWEST_ROUNDS if self.round_seconds < LONG_ROUND else 1
        return max(fewest, round(seconds / self.round_seconds))

    @property
    def disturbed(self) -> float:
        """The share of runs that were interrupted."""
        return self._disturbed / max(1, self._runs)

    def round(self) -> float:
        """One round: every artifact's turns in shuffled order; gives the seconds it took."""
        began = time.perf_counter()
        samples: list[list[tuple[float, bool]]] = [[] for _ in self._entrants]
        seed = int(self._rng.integers(2**31))
        for order in interleaved_order(len(self._entrants), self._blocks, seed):
            for index in order:
                entrant = self._entrants[index]
                if self._settle:
                    entrant.engine.time(self._settle)
                samples[index] += timed_runs(entrant.engine, entrant.runs, self._switches)
        for index, entrant in self._entrants.items():
            entrant.keep(samples[index])
            self._runs += len(samples[index])
            self._disturbed += sum(not undisturbed for _, undisturbed in samples[index])
        return time.perf_counter() - began

    def timings(self) -> tuple[Timings, ...]:
        """Everything kept, in the order of the artifacts."""
        return tuple(self._entrants[index].timings() for index in range(len(self._entrants)))


def time_session(
    artifacts: Sequence[Artifact],
    target: Target,
    runtime: Runtime,
    seed: int,
    seconds: float,
    *,
    own_clock: Callable[[], float] | None = None,
) -> Session:
    """Load engines of ``artifacts``, let them take turns for about ``seconds``, and close them.

    ``own_clock`` tells the processor's time that the engines have had, where that can be told;
    else interrupted runs tell how busy the machine is with others.
    """
    timer = InterleavedTimer(artifacts, target, runtime, seed)
    try:
        began, had = time.perf_counter(), own_clock() if own_clock else 0.0
        # counted beforehand: a machine that is slow for a while gets no fewer rounds
        for _ in range(timer.rounds_in(seconds)):
            timer.round()
        passed = time.perf_counter() - began
        # half of a run that is interrupted is lost, or so
        lost = timer.disturbed / 2
        if own_clock is not None:
            lost = max(0.0, 1 - (own_clock() - had) / passed)
        return Session(timer.timings(), lost, timer.load_seconds, passed)
    finally:
        timer.close()


def timed_runs(engine: Engine, runs: int, switches: Callable[[], int]) -> list[tuple[float, bool]]:
    """Milliseconds of single runs, each with whether no other process interrupted it."""
    samples = []
    before = switches()
    for _ in range(runs):
        (ms,) = engine.time(1)
        after = switches()
        samples.append((ms, after == before))
        before = after
    return samples


def _warm_up(engine: Engine, least_ms: float) -> float:
    """Run for ``least_ms``, at most 1000 times; gives the later half's median in milliseconds."""
    samples: list[float] = []
    total = 0.0
    while total < least_ms and len(samples) < 1000:
        samples += engine.time(1)
        total += samples[-1]
    return max(1e-6, float(np.median(samples[len(samples) // 2 :])))


def switch_counter(threads: int) -> Callable[[], int]:
    """How often the system took the processor away so far; always 0 where it does not tell."""
    if sys.platform == "win32":
        return lambda: 0
    import resource

    who = resource.RUSAGE_SELF
    if threads == 1:
        who = getattr(resource, "RUSAGE_THREAD", who)
    return lambda: resource.getrusage(who).ru_nivcsw
