"""Artifacts that take turns: rounds of interleaved runs, with what disturbs them kept out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.core.timing import Measurement, PairedRatio, interleaved_order, paired_ratio
from prunekit.runtimes.base import Engine, Runtime, file_precision, runtime_for
from prunekit.support.errors import UsageError

WARM_UP_MS = 200.0
BLOCK_MS = 12.0
"""How long one artifact runs before it is another's turn."""
BLOCKS = 3
"""Turns of every artifact in a round."""


@dataclass
class _Entrant:
    """One artifact: its engine while it is loaded, its runs per turn, and what was kept of them."""

    artifact: Artifact
    engine: Engine | None = None
    runs: int = 1
    samples_ms: list[float] = field(default_factory=list)
    round_medians_ms: list[float] = field(default_factory=list)
    dropped: int = 0

    @property
    def loaded(self) -> Engine:
        """The engine, between loading and closing."""
        if self.engine is None:
            raise UsageError(f"{self.artifact.path}: the engine is closed")
        return self.engine

    def keep(self, samples: list[tuple[float, bool]]) -> None:
        """A round's samples, without the interrupted ones where at least half are left."""
        clean = [ms for ms, undisturbed in samples if undisturbed]
        kept = clean if 2 * len(clean) >= len(samples) else [ms for ms, _ in samples]
        self.dropped += len(samples) - len(kept)
        self.samples_ms += kept
        self.round_medians_ms.append(float(np.median(kept)))


@dataclass
class _Schedule:
    """How a round goes: turns of every artifact, and runs before each that do not count."""

    blocks: int = BLOCKS
    settle: int = 0


@dataclass
class _Clock:
    """When the first round began, when engines were last loaded, and how long that took."""

    started: float | None = None
    loaded_at: float = 0.0
    load_seconds: float = 0.0


class InterleavedTimer:
    """Engines of several artifacts that take turns; ``seconds`` counts from the first round on.

    Engines are loaded anew from time to time, where loading is cheap: where buffers happen to lie
    in memory moves a session's latency by up to a percent for as long as it lives.
    """

    def __init__(
        self, artifacts: Sequence[Artifact | str | Path], target: Target | str, seed: int
    ) -> None:
        if isinstance(artifacts, (str, Path, Artifact)) or not artifacts:
            raise UsageError("`artifacts` must be a list of at least one artifact or path")
        if seed < 0:
            raise UsageError(f"`seed` is {seed}; the least is 0")
        self.target = Target.of(target)
        self.runtime: Runtime = runtime_for(self.target)
        self._entrants = [
            _Entrant(item if isinstance(item, Artifact) else Artifact.of_file(item))
            for item in artifacts
        ]
        for artifact in self.artifacts:
            _check(artifact, self.runtime, self.target)
        self._rng = np.random.default_rng(seed)
        self._schedule, self._clock = _Schedule(), _Clock()
        self._switches = switch_counter(self.target.threads)

    def __enter__(self) -> InterleavedTimer:
        self._load()
        return self

    def __exit__(self, *_: object) -> None:
        for entrant in self._entrants:
            if entrant.engine is not None:
                entrant.engine.close()
        for entrant in self._entrants:
            entrant.engine = None

    def _load(self) -> None:
        """Load and warm up; the first time, also choose how many runs make a turn."""
        self.__exit__()
        began = time.perf_counter()
        # In any order, or the same place in memory would always be the same artifact's.
        for index in self._rng.permutation(len(self._entrants)).tolist():
            entrant = self._entrants[index]
            entrant.engine = self.runtime.load(entrant.artifact, self.target)
        self._clock.load_seconds = time.perf_counter() - began
        first = not self.rounds
        warm_ms = WARM_UP_MS if first else WARM_UP_MS / 10
        typical = [_warm_up(entrant.loaded, warm_ms) for entrant in self._entrants]
        if first:
            for entrant, ms in zip(self._entrants, typical, strict=True):
                entrant.runs = max(1, min(200, round(BLOCK_MS / ms)))
            # The first run of a turn finds the caches full of another network; where runs are
            # long enough for that not to matter much, it is not thrown away.
            self._schedule.settle = 1 if max(typical) < 2 * BLOCK_MS else 0
            self._schedule.blocks = BLOCKS if max(typical) < 10 * BLOCK_MS else 1
        self._clock.loaded_at = time.perf_counter()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What takes turns, the reference first."""
        return tuple(entrant.artifact for entrant in self._entrants)

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._entrants[0].round_medians_ms)

    @property
    def seconds(self) -> float:
        """Seconds since the first round began."""
        started = self._clock.started
        return 0.0 if started is None else time.perf_counter() - started

    def round(self) -> float:
        """One round: every artifact's turns in shuffled order; gives the seconds it took."""
        began, clock = time.perf_counter(), self._clock
        if clock.started is None:
            clock.started = began
        elif began - clock.loaded_at > max(0.5, 10 * clock.load_seconds):
            self._load()
        taken: list[list[tuple[float, bool]]] = [[] for _ in self._entrants]
        seed = int(self._rng.integers(2**31))
        for order in interleaved_order(len(self._entrants), self._schedule.blocks, seed):
            for index in order:
                engine = self._entrants[index].loaded
                if self._schedule.settle:
                    engine.time(self._schedule.settle)
                taken[index] += timed_runs(engine, self._entrants[index].runs, self._switches)
        for entrant, samples in zip(self._entrants, taken, strict=True):
            entrant.keep(samples)
        return time.perf_counter() - began

    def ratio(self, index: int, confidence: float) -> PairedRatio:
        """Artifact ``index`` over the first."""
        first, other = self._entrants[0], self._entrants[index]
        return paired_ratio(first.round_medians_ms, other.round_medians_ms, confidence)

    def spread(self, confidence: float) -> float:
        """The widest half interval that matters, as a share."""
        if len(self._entrants) > 1:
            ratios = [self.ratio(index, confidence) for index in range(1, len(self._entrants))]
            return max(max(r.high / r.ratio, r.ratio / max(r.low, 1e-9)) - 1 for r in ratios)
        measured = Measurement(tuple(self._entrants[0].round_medians_ms))
        low, high = measured.interval(confidence)
        return (high - low) / 2 / measured.median_ms

    def note(self) -> str:
        """What a progress bar says beside itself."""
        if not self.rounds:
            return ""
        medians = [float(np.median(entrant.round_medians_ms)) for entrant in self._entrants]
        text = ", ".join(f"{median:.3f} ms" for median in medians)
        return text if len(medians) != 2 else f"{text}, ratio {medians[1] / medians[0]:.3f}"

    def measurements(self) -> tuple[Measurement, ...]:
        """Everything kept, one measurement per artifact."""
        return tuple(
            Measurement(tuple(entrant.samples_ms), entrant.dropped) for entrant in self._entrants
        )


def _check(artifact: Artifact, runtime: Runtime, target: Target) -> None:
    """Refuse a file of another format or precision than ``target`` takes."""
    if artifact.format not in runtime.formats:
        raise UsageError(
            f"{artifact.path}: target {target} takes artifacts of format "
            f"{' or '.join(runtime.formats)}, not {artifact.format}"
        )
    # a target in fp32 may compare files in all precisions
    wanted = file_precision(runtime, target)
    if artifact.format == "onnx" and wanted != "fp32":
        from prunekit.runtimes.onnx_graph import check_precision, load_model

        check_precision(artifact.path, load_model(artifact.path), wanted)


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
