"""Interleaved timing of artifacts, and the decision whether one got slower."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np

from prunekit.artifact import Artifact
from prunekit.errors import UsageError
from prunekit.progress import bar, say
from prunekit.runtimes import Engine, Runtime, runtime_for
from prunekit.target import Environment, Target
from prunekit.timing import Measurement, PairedRatio, interleaved_order, paired_ratio

WARM_UP_MS = 200.0
BLOCK_MS = 12.0
"""How long one artifact runs before it is another's turn."""
BLOCKS = 3
"""Turns of every artifact in a round."""
LOOKS = 7
"""How often a check may look at the interval; the error allowed is shared among them."""
_NOISY_CV = 0.2


@dataclass(frozen=True)
class BenchResult:
    """Timings of artifacts that took turns, and each later one's ratio to the first."""

    target: Target
    environment: Environment
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[PairedRatio, ...]

    @property
    def ratio(self) -> float:
        """The last artifact's time over the first's."""
        return self._last.ratio

    @property
    def ratio_ci(self) -> tuple[float, float]:
        """The interval of :attr:`ratio`."""
        return self._last.low, self._last.high

    @property
    def samples_ms(self) -> tuple[tuple[float, ...], ...]:
        """All samples of every artifact, in the order of the artifacts."""
        return tuple(measurement.samples_ms for measurement in self.measurements)

    @property
    def _last(self) -> PairedRatio:
        if not self.ratios:
            raise UsageError("a ratio needs two artifacts; `bench` was given one")
        return self.ratios[-1]


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is slower than allowed, and why that is believed."""

    outcome: Literal["pass", "fail", "inconclusive"]
    ratio: PairedRatio
    threshold: float
    reason: str


def bench(
    artifacts: Sequence[Artifact | str | Path],
    target: Target | str,
    *,
    max_seconds: float = 20.0,
    min_rounds: int = 15,
    precision_goal: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
) -> BenchResult:
    """Time ``artifacts`` on ``target``, taking turns in shuffled rounds.

    Ends when every ratio's interval (of a single artifact: its median's) reaches no further than
    ``precision_goal`` to either side, or after ``max_seconds`` of measuring.
    """
    if min_rounds < 1 or max_seconds <= 0 or precision_goal <= 0:
        raise UsageError("`min_rounds`, `max_seconds` and `precision_goal` must be positive")
    race = _Race(artifacts, target, seed)
    count = len(race.artifacts)
    due = min_rounds
    with race, bar(f"timing {count} artifact{'s' if count > 1 else ''}", max_seconds) as shown:
        while True:
            shown.advance(race.round(), race.note())
            out_of_time = race.seconds >= max_seconds and race.rounds >= min(min_rounds, 3)
            if race.rounds >= due or out_of_time:
                due = math.ceil(race.rounds * 1.25)
                if out_of_time or race.spread(confidence) <= precision_goal:
                    break
    measurements = race.measurements()
    for artifact, measurement in zip(race.artifacts, measurements, strict=True):
        _warn_if_noisy(artifact, measurement, max_seconds)
    return BenchResult(
        race.target,
        race.runtime.environment(race.target),
        race.artifacts,
        measurements,
        tuple(race.ratio(other, confidence) for other in range(1, count)),
    )


def _warn_if_noisy(artifact: Artifact, measurement: Measurement, seconds: float) -> None:
    if measurement.cv > _NOISY_CV:
        say(
            f"note: runs of {artifact.path} vary by {100 * measurement.cv:.0f} % (standard "
            "deviation over mean); close other programs, fix the processor's clock, or measure "
            f"longer (--max-seconds {2 * seconds:g})"
        )


def check_regression(
    baseline: Artifact | str | Path,
    candidate: Artifact | str | Path,
    target: Target | str,
    *,
    threshold: float = 0.05,
    confidence: float = 0.99,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> Verdict:
    """Say whether ``candidate`` is slower than ``baseline`` by more than ``threshold`` (a share).

    Measures until the interval of their ratio lies on one side of ``1 + threshold``, at most
    ``max_seconds``. The probability of a wrong pass or fail stays under ``1 - confidence``, however
    often it looks: each of a fixed number of looks gets its share of it (Bonferroni).
    """
    return _check(
        (baseline, candidate),
        target,
        lambda measured, _z: measured,
        "the baseline",
        _Limits(threshold, confidence, max_seconds),
        seed,
    )


def check_ratio(
    reference: Artifact | str | Path,
    candidate: Artifact | str | Path,
    recorded_ratio: float,
    target: Target | str,
    *,
    recorded_ci: tuple[float, float] | None = None,
    recorded_confidence: float = 0.95,
    threshold: float = 0.05,
    confidence: float = 0.99,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> Verdict:
    """Say whether ``candidate / reference`` grew by more than ``threshold`` over a recorded ratio.

    The recorded ratio's own interval, where known, widens the measured one.
    """
    if recorded_ratio <= 0:
        raise UsageError(f"`recorded_ratio` must be positive, not {recorded_ratio}")
    low, high = recorded_ci or (recorded_ratio, recorded_ratio)
    if not 0 < low <= recorded_ratio <= high:
        raise UsageError(
            f"`recorded_ci` must enclose the ratio {recorded_ratio}, not {low}, {high}"
        )
    recorded_z = _z(recorded_confidence)

    def relative(measured: PairedRatio, z: float) -> PairedRatio:
        # A recorded ratio that was too high makes the quotient too low, and the other way round.
        below = math.hypot(
            math.log(measured.ratio / measured.low) if measured.low > 0 else math.inf,
            math.log(high / recorded_ratio) * z / recorded_z,
        )
        above = math.hypot(
            math.log(measured.high / measured.ratio),
            math.log(recorded_ratio / low) * z / recorded_z,
        )
        quotient = measured.ratio / recorded_ratio
        return replace(
            measured,
            ratio=quotient,
            low=quotient * math.exp(-below),
            high=quotient * math.exp(above),
        )

    return _check(
        (reference, candidate),
        target,
        relative,
        f"the recorded ratio {recorded_ratio:.3f}",
        _Limits(threshold, confidence, max_seconds),
        seed,
    )


@dataclass(frozen=True)
class _Limits:
    threshold: float
    confidence: float
    max_seconds: float

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.max_seconds <= 0:
            raise UsageError("`threshold` must not be negative and `max_seconds` must be positive")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"`confidence` must lie in 0.5 to 1, not {self.confidence}")

    @property
    def per_look(self) -> float:
        return 1 - (1 - self.confidence) / LOOKS


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check(
    pair: tuple[Artifact | str | Path, Artifact | str | Path],
    target: Target | str,
    relative: Callable[[PairedRatio, float], PairedRatio],
    against: str,
    limits: _Limits,
    seed: int,
) -> Verdict:
    race = _Race(pair, target, seed)
    allowed = 1 + limits.threshold
    due, looks = 12, 0
    with race, bar("checking for a regression", limits.max_seconds) as shown:
        while True:
            shown.advance(race.round(), race.note())
            last = race.seconds >= limits.max_seconds and race.rounds >= 3
            if not last and race.rounds < due:
                continue
            looks, due = looks + 1, due * 2
            last = last or looks == LOOKS
            found = relative(race.ratio(1, limits.per_look), _z(limits.per_look))
            ratio = replace(found, confidence=limits.confidence)
            text = f"{100 * (ratio.ratio - 1):+.1f} % against {against}: {ratio}"
            if ratio.high < allowed:
                return Verdict("pass", ratio, limits.threshold, f"{text}, below {allowed:g}")
            if ratio.low > allowed:
                return Verdict("fail", ratio, limits.threshold, f"{text}, above {allowed:g}")
            if last:
                break
    reason = (
        f"{text}, on both sides of {allowed:g} after {race.seconds:.0f} s; close other programs, "
        f"measure longer (--max-seconds {2 * limits.max_seconds:g}) or move the threshold"
    )
    return Verdict("inconclusive", ratio, limits.threshold, reason)


class _Race:
    """Engines of several artifacts that take turns; ``seconds`` counts from the first round on.

    Engines are loaded anew from time to time, where loading is cheap: where buffers happen to lie
    in memory moves a session's latency by up to a percent for as long as it lives.
    """

    def __init__(
        self, artifacts: Sequence[Artifact | str | Path], target: Target | str, seed: int
    ) -> None:
        if isinstance(artifacts, (str, Path, Artifact)) or not artifacts:
            raise UsageError("`artifacts` must be a list of at least one artifact or path")
        self.target = Target.parse(target) if isinstance(target, str) else target
        self.runtime: Runtime = runtime_for(self.target)
        self.artifacts = tuple(
            item if isinstance(item, Artifact) else Artifact.of_file(item) for item in artifacts
        )
        for artifact in self.artifacts:
            if artifact.format != self.runtime.artifact_format:
                raise UsageError(
                    f"{artifact.path}: target {self.target} takes artifacts of format "
                    f"{self.runtime.artifact_format}, not {artifact.format}"
                )
        count = len(self.artifacts)
        self._rng = np.random.default_rng(seed)
        self._samples: list[list[float]] = [[] for _ in range(count)]
        self._values: list[list[float]] = [[] for _ in range(count)]
        self._dropped = [0] * count
        self._engines: list[Engine] = []
        self._runs, self._settle = [1] * count, 0
        self._switches = _switch_counter(self.target.threads)
        self._started: float | None = None
        self._loaded_at = self._loading = 0.0

    def __enter__(self) -> _Race:
        self._load()
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines:
            engine.close()
        self._engines = []

    def _load(self) -> None:
        """Load and warm up; the first time, also choose how many runs make a turn."""
        self.__exit__()
        began = time.perf_counter()
        self._engines = [self.runtime.load(artifact, self.target) for artifact in self.artifacts]
        self._loading = time.perf_counter() - began
        first = not self._values[0]
        warm_ms = WARM_UP_MS if first else WARM_UP_MS / 10
        typical = [_warm_up(engine, warm_ms) for engine in self._engines]
        if first:
            self._runs = [max(1, min(200, round(BLOCK_MS / ms))) for ms in typical]
            # The first run of a turn finds the caches full of another network; where runs are
            # long enough for that not to matter much, it is not thrown away.
            self._settle = 1 if max(typical) < 2 * BLOCK_MS else 0
            self._blocks = BLOCKS if max(typical) < 10 * BLOCK_MS else 1
        self._loaded_at = time.perf_counter()

    @property
    def rounds(self) -> int:
        return len(self._values[0])

    @property
    def seconds(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def round(self) -> float:
        """One round: every artifact's turns in shuffled order; gives the seconds it took."""
        began = time.perf_counter()
        if self._started is None:
            self._started = began
        elif began - self._loaded_at > max(0.5, 10 * self._loading):
            self._load()
        taken: list[list[tuple[float, bool]]] = [[] for _ in self._engines]
        seed = int(self._rng.integers(2**31))
        for order in interleaved_order(len(self._engines), self._blocks, seed):
            for index in order:
                if self._settle:
                    self._engines[index].time(self._settle)
                taken[index] += self._turn(index)
        for index, samples in enumerate(taken):
            clean = [ms for ms, interrupted in samples if not interrupted]
            kept = clean if 2 * len(clean) >= len(samples) else [ms for ms, _ in samples]
            self._dropped[index] += len(samples) - len(kept)
            self._samples[index] += kept
            self._values[index].append(float(np.median(kept)))
        return time.perf_counter() - began

    def _turn(self, index: int) -> list[tuple[float, bool]]:
        engine, samples = self._engines[index], []
        before = self._switches()
        for _ in range(self._runs[index]):
            (ms,) = engine.time(1)
            after = self._switches()
            samples.append((ms, after != before))
            before = after
        return samples

    def ratio(self, index: int, confidence: float) -> PairedRatio:
        """Artifact ``index`` over the first."""
        return paired_ratio(self._values[0], self._values[index], confidence)

    def spread(self, confidence: float) -> float:
        """The widest half interval that matters, as a share."""
        if len(self._values) > 1:
            ratios = [self.ratio(index, confidence) for index in range(1, len(self._values))]
            return max(max(r.high / r.ratio, r.ratio / max(r.low, 1e-9)) - 1 for r in ratios)
        measured = Measurement(tuple(self._values[0]))
        low, high = measured.interval(confidence)
        return (high - low) / 2 / measured.median_ms

    def note(self) -> str:
        """What a progress bar says beside itself."""
        medians = ", ".join(f"{np.median(values):.3f} ms" for values in self._values if values)
        if len(self._values) != 2 or not self._values[0]:
            return medians
        return f"{medians}, ratio {np.median(self._values[1]) / np.median(self._values[0]):.3f}"

    def measurements(self) -> tuple[Measurement, ...]:
        return tuple(
            Measurement(tuple(samples), dropped)
            for samples, dropped in zip(self._samples, self._dropped, strict=True)
        )


def _warm_up(engine: Engine, least_ms: float) -> float:
    """Run for ``least_ms``, at most 1000 times; gives the later half's median in milliseconds."""
    samples: list[float] = []
    total = 0.0
    while total < least_ms and len(samples) < 1000:
        samples += engine.time(1)
        total += samples[-1]
    return max(1e-6, float(np.median(samples[len(samples) // 2 :])))


def _switch_counter(threads: int) -> Callable[[], int]:
    """How often the system took the processor away so far; always 0 where it does not tell."""
    if sys.platform == "win32":
        return lambda: 0
    import resource

    who = resource.RUSAGE_SELF
    if threads == 1:
        who = getattr(resource, "RUSAGE_THREAD", who)
    return lambda: resource.getrusage(who).ru_nivcsw
