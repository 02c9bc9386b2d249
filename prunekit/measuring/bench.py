"""Interleaved timing of artifacts, and the decision whether one got slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment, Target
from prunekit.core.timing import Measurement, PairedRatio
from prunekit.measuring.interleaved import InterleavedTimer
from prunekit.runtimes.onnx_graph import input_shapes, load_model
from prunekit.support.errors import UsageError
from prunekit.support.progress import bar, say

LOOKS = 7
"""How often a check may look at the interval; the error allowed is shared among them."""
FEWEST_ROUNDS = 5
"""The intervals of fewer miss the ratio more often than they say."""
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
    ``precision_goal`` to either side, or after ``max_seconds`` of measuring, but never before
    :data:`FEWEST_ROUNDS` rounds.
    """
    if min_rounds < 1 or not max_seconds > 0 or not precision_goal > 0:
        raise UsageError("`min_rounds`, `max_seconds` and `precision_goal` must be positive")
    timer = InterleavedTimer(artifacts, target, seed)
    count = len(timer.artifacts)
    for gap in _inputs_apart(timer.artifacts):
        say(f"note: {gap}; their ratio is of different work")
    due = max(min_rounds, FEWEST_ROUNDS)
    with timer, bar(f"timing {count} artifact{'s' if count > 1 else ''}", max_seconds) as shown:
        while True:
            shown.advance(timer.round(), timer.note())
            out_of_time = timer.seconds >= max_seconds and timer.rounds >= FEWEST_ROUNDS
            if timer.rounds >= due or out_of_time:
                due = math.ceil(timer.rounds * 1.25)
                if out_of_time or timer.spread(confidence) <= precision_goal:
                    break
    measurements = timer.measurements()
    for number, measurement in enumerate(measurements):
        name = timer.artifacts[number].path or f"network {number + 1}"
        _warn_if_noisy(name, measurement, max_seconds)
    environment = timer.runtime.environment(timer.target)
    if environment.throttled:
        say(
            f"note: the GPU held its clocks back meanwhile ({', '.join(environment.throttled)}); "
            "cool it, raise its power limit, or lock its clocks, and measure again"
        )
    return BenchResult(
        timer.target,
        environment,
        timer.artifacts,
        measurements,
        tuple(timer.ratio(other, confidence) for other in range(1, count)),
    )


def _inputs_apart(artifacts: Sequence[Artifact]) -> list[str]:
    """Which ONNX files take inputs of other shapes than the first, the batch aside."""
    first, *others = map(_inputs, artifacts)
    return [
        f"{artifact.path} takes inputs of {its}, and {artifacts[0].path} of {first}"
        for artifact, its in zip(artifacts[1:], others, strict=True)
        if first and its and its != first
    ]


def _inputs(artifact: Artifact) -> str:
    """The shapes that a file takes, without the batch; empty where they are not known."""
    if artifact.format != "onnx" or not Path(artifact.path).is_file():
        return ""
    shapes = artifact.input_shapes or input_shapes(load_model(artifact.path), artifact.path)
    return ", ".join("x".join(map(str, shape[1:])) for shape in shapes.values())


def _warn_if_noisy(name: str, measurement: Measurement, seconds: float) -> None:
    if measurement.cv > _NOISY_CV:
        say(
            f"note: runs of {name} vary by {100 * measurement.cv:.0f} % (standard "
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
        Limits(threshold, confidence, max_seconds),
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
    if not 0 < recorded_ratio < math.inf:
        raise UsageError(f"`recorded_ratio` must be positive, not {recorded_ratio}")
    if not 0 < recorded_confidence < 1:
        raise UsageError(
            f"`recorded_confidence` must lie between 0 and 1, not {recorded_confidence}"
        )
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
        Limits(threshold, confidence, max_seconds),
        seed,
    )


@dataclass(frozen=True)
class Limits:
    """How much slower is too slow (a share), how sure to be, and how long to measure."""

    threshold: float = 0.05
    confidence: float = 0.99
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise UsageError(f"`threshold` must be a share such as 0.05, not {self.threshold}")
        if not self.max_seconds > 0:
            raise UsageError(f"`max_seconds` must be positive, not {self.max_seconds}")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"`confidence` must lie in 0.5 to 1, not {self.confidence}")


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check(
    pair: tuple[Artifact | str | Path, Artifact | str | Path],
    target: Target | str,
    relative: Callable[[PairedRatio, float], PairedRatio],
    against: str,
    limits: Limits,
    seed: int,
) -> Verdict:
    timer = InterleavedTimer(pair, target, seed)
    if gaps := _inputs_apart(timer.artifacts):
        raise UsageError(f"{gaps[0]}; export both for the same inputs")
    allowed, per_look = 1 + limits.threshold, 1 - (1 - limits.confidence) / LOOKS
    due, looks = 12, 0
    with timer, bar("checking for a regression", limits.max_seconds) as shown:
        while True:
            shown.advance(timer.round(), timer.note())
            last = timer.seconds >= limits.max_seconds and timer.rounds >= FEWEST_ROUNDS
            if not last and timer.rounds < due:
                continue
            looks, due = looks + 1, due * 2
            last = last or looks == LOOKS
            estimate = relative(timer.ratio(1, per_look), _z(per_look))
            ratio = replace(estimate, confidence=limits.confidence)
            text = f"{100 * (ratio.ratio - 1):+.1f} % against {against}: {ratio}"
            if ratio.high < allowed:
                return Verdict("pass", ratio, limits.threshold, f"{text}, below {allowed:g}")
            if ratio.low > allowed:
                return Verdict("fail", ratio, limits.threshold, f"{text}, above {allowed:g}")
            if last:
                break
    reason = (
        f"{text}, on both sides of {allowed:g} after {timer.seconds:.0f} s; close other programs, "
        f"measure longer (--max-seconds {2 * limits.max_seconds:g}) or move the threshold"
    )
    return Verdict("inconclusive", ratio, limits.threshold, reason)
