"""Interleaved timing of artifacts, and the decision whether one got slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prunekit.core.artifact import Artifact
from prunekit.core.estimate import BUSY, Estimate, of_interval
from prunekit.core.ratio import PairedRatio
from prunekit.core.target import Environment, Target
from prunekit.core.timing import Measurement
from prunekit.measuring.sessions import FEWEST, Sessions
from prunekit.runtimes.onnx_graph import input_shapes, load_model
from prunekit.support.errors import UsageError
from prunekit.support.progress import bar, say

LOOKS = 7
"""How often a check may look at the interval; the error allowed is shared among them."""
_NOISY_CV = 0.2
MUCH_WIDER = 3.0
"""An interval so many times wider than it should be is said."""
MOST_MORE = 20.0
"""An answer that takes this many times longer is not worth waiting for."""


@dataclass(frozen=True)
class BenchResult:
    """Timings of artifacts that took turns, and each later one's ratio to the first."""

    target: Target
    environment: Environment
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[PairedRatio, ...]
    lost: float = 0.0
    """The share of the processor's time that other processes took meanwhile."""

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
    more_seconds: float = 0.0
    """How much longer it would take to tell, as far as is known; infinite where it cannot be."""


def bench(
    artifacts: Sequence[Artifact | str | Path],
    target: Target | str,
    *,
    max_seconds: float = 20.0,
    min_rounds: int = 15,
    precision_goal: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    enough: Callable[[Sessions], bool] | None = None,
) -> BenchResult:
    """Time ``artifacts`` on ``target`` in several sessions, taking turns in shuffled rounds.

    Every session loads the engines anew, in a fresh process where that is quick. Ends when every
    ratio's interval (of a single artifact: its median's) reaches no further than
    ``precision_goal`` to either side, or would not get closer, or when what there is is ``enough``;
    or after ``max_seconds`` of measuring, but never before four sessions.
    """
    if min_rounds < 1 or not max_seconds > 0 or not precision_goal > 0:
        raise UsageError("`min_rounds`, `max_seconds` and `precision_goal` must be positive")
    sessions = Sessions(artifacts, target, seed, max_seconds)
    count = len(sessions.artifacts)
    for gap in _inputs_apart(sessions.artifacts):
        say(f"note: {gap}; their ratio is of different work")

    with bar(f"timing {count} artifact{'s' if count > 1 else ''}", max_seconds) as shown:
        while True:
            shown.advance(sessions.add(), sessions.note())
            if sessions.count < FEWEST:
                continue
            if sessions.seconds >= max_seconds or (enough is not None and enough(sessions)):
                break
            if sessions.rounds >= min_rounds and sessions.settled(precision_goal, confidence):
                break
    measurements = sessions.measurements()
    for number, measurement in enumerate(measurements):
        name = sessions.artifacts[number].path or f"network {number + 1}"
        _warn_if_noisy(name, measurement, max_seconds)
    _say_if_unsure(sessions, precision_goal, confidence, max_seconds)
    environment = sessions.runtime.environment(sessions.target)
    if environment.throttled:
        say(
            f"note: the GPU held its clocks back meanwhile ({', '.join(environment.throttled)}); "
            "cool it, raise its power limit, or lock its clocks, and measure again"
        )
    return BenchResult(
        *(sessions.target, environment, sessions.artifacts, measurements),
        tuple(sessions.ratio(other, confidence) for other in range(1, count)),
        sessions.lost,
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


def _say_if_unsure(sessions: Sessions, goal: float, confidence: float, max_seconds: float) -> None:
    """Say what keeps a ratio's interval far wider than it should be, and what would help."""
    others = range(1, len(sessions.artifacts))
    reach = max(
        (sessions.ratio(i, confidence).estimate.reach(confidence) for i in others), default=0.0
    )
    if reach <= MUCH_WIDER * goal:
        return
    what = f"note: the ratio is known to {reach:.0%} only after {sessions.seconds:.0f} s: "
    if sessions.lost > BUSY:
        say(f"{what}other processes took {sessions.lost:.0%} of the processor's time; stop them")
    else:
        say(f"{what}sessions differ; measure longer (--max-seconds {3 * max_seconds:g})")


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
        lambda measured: measured,
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
    recorded = of_interval(recorded_ratio, low, high, recorded_confidence)
    return _check(
        (reference, candidate),
        target,
        lambda measured: measured.over(recorded),
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


def _check(
    pair: tuple[Artifact | str | Path, Artifact | str | Path],
    target: Target | str,
    relative: Callable[[Estimate], Estimate],
    against: str,
    limits: Limits,
    seed: int,
) -> Verdict:
    sessions = Sessions(pair, target, seed, limits.max_seconds)
    if gaps := _inputs_apart(sessions.artifacts):
        raise UsageError(f"{gaps[0]}; export both for the same inputs")
    allowed, per_look = 1 + limits.threshold, 1 - (1 - limits.confidence) / LOOKS
    due, looks = FEWEST, 0
    with bar("checking for a regression", limits.max_seconds) as shown:
        while True:
            shown.advance(sessions.add(), sessions.note())
            last = sessions.seconds >= limits.max_seconds and sessions.count >= FEWEST
            if not last and sessions.count < due:
                continue
            looks, due = looks + 1, math.ceil(due * 1.5)
            last = last or looks == LOOKS
            known = relative(sessions.ratio(1, per_look).estimate)
            low, high = known.interval(per_look)
            ratio = PairedRatio(
                *(known.value, low, high, limits.confidence, sessions.rounds, sessions.count),
            )
            text = f"{100 * (ratio.ratio - 1):+.1f} % against {against}: {ratio}"
            if high < allowed:
                return Verdict("pass", ratio, limits.threshold, f"{text}, below {allowed:g}")
            if low > allowed:
                return Verdict("fail", ratio, limits.threshold, f"{text}, above {allowed:g}")
            if last:
                break
    more = _more_seconds(sessions, known, allowed, per_look)
    reason = f"{text}, on both sides of {allowed:g} after {sessions.seconds:.0f} s; "
    return Verdict(
        *("inconclusive", ratio, limits.threshold),
        reason + _remedy(sessions, more, limits.max_seconds),
        more,
    )


def _more_seconds(sessions: Sessions, known: Estimate, allowed: float, confidence: float) -> float:
    """How much longer it would take to tell, infinite where it cannot be told."""
    needed = known.sessions_to_tell(allowed, confidence)
    return max(1.0, needed - known.sessions) * sessions.seconds / sessions.count


def _remedy(sessions: Sessions, more: float, max_seconds: float) -> str:
    if sessions.lost > BUSY:
        return (
            f"other processes took {sessions.lost:.0%} of the processor's time: close them, "
            "or measure where they are not"
        )
    if more <= MOST_MORE * max_seconds:
        whole = math.ceil(sessions.seconds + 1.2 * more)
        return f"about {more:.0f} s more would tell (--max-seconds {whole})"
    return (
        "too near to it to tell on this machine: close other programs, fix the processor's clock, "
        "or move the threshold"
    )
