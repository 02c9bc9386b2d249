"""Statistics of noisy timings: medians with honest intervals, and ratios of interleaved runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prunekit.core.estimate import DRIFT_ALONE, Estimate, estimate
from prunekit.core.ratio import PairedRatio
from prunekit.support.errors import UsageError

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """Every sample kept, in the order measured; statistics are derived from them.

    ``dropped`` counts samples left out because the system interrupted them.
    """

    samples_ms: tuple[float, ...]
    dropped: int = 0
    session_medians_ms: tuple[float, ...] = ()
    """One per loading of the engine, where there were several."""

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise UsageError("a measurement needs at least one sample")

    @cached_property
    def _quantiles(self) -> dict[int, float]:
        wanted = (10, 25, 50, 75, 90, 99)
        return dict(zip(wanted, map(float, np.percentile(self.samples_ms, wanted)), strict=True))

    @property
    def median_ms(self) -> float:
        """The middle sample."""
        return self._quantiles[50]

    @property
    def p10_ms(self) -> float:
        """One run in ten is at most this."""
        return self._quantiles[10]

    @property
    def p90_ms(self) -> float:
        """Nine runs in ten are at most this."""
        return self._quantiles[90]

    @property
    def p99_ms(self) -> float:
        """Ninety-nine runs in a hundred are at most this."""
        return self._quantiles[99]

    @property
    def iqr_ms(self) -> float:
        """The width of the middle half."""
        return self._quantiles[75] - self._quantiles[25]

    @property
    def cv(self) -> float:
        """Standard deviation over mean."""
        samples = np.asarray(self.samples_ms)
        return float(samples.std() / samples.mean()) if samples.mean() else 0.0

    def estimate(self, lost: float = 0.0) -> Estimate:
        """The latency in milliseconds as later sessions on this machine would see it."""
        return estimate(self.session_medians_ms, drift=DRIFT_ALONE, lost=lost)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval of the median in milliseconds: of sessions, else within what was seen."""
        if self.session_medians_ms:
            return self.estimate().interval(confidence)
        low, high = median_interval(self.samples_ms, confidence)
        return max(low, min(self.samples_ms)), min(high, max(self.samples_ms))


def paired_ratio(a_rounds: Values, b_rounds: Values, confidence: float = 0.95) -> PairedRatio:
    """``b / a``: the median over rounds of the ratio of the two values of each round.

    What slows a whole round slows both and cancels. The interval is that of the median, widened
    where neighbouring rounds resemble each other (see :func:`median_interval`).

    Examples:
        >>> dense = [10.0, 10.2, 14.0, 10.1, 9.9, 10.0, 13.8, 10.2]
        >>> small = [5.0, 5.1, 7.0, 5.1, 4.9, 5.0, 6.9, 5.1]
        >>> print(f"{paired_ratio(dense, small).ratio:.2f}")  # slow rounds slow both
        0.50
    """
    a, b = np.asarray(a_rounds, dtype=np.float64), np.asarray(b_rounds, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise UsageError(
            f"`a_rounds` and `b_rounds` need as many values as each other, at least one; "
            f"got {a.size} and {b.size}"
        )
    if a.min() <= 0 or b.min() <= 0:
        raise UsageError("timings must be positive")
    logs = np.log(b) - np.log(a)
    low, high = median_interval(logs, confidence)
    return PairedRatio(
        math.exp(float(np.median(logs))),
        math.exp(low),
        math.exp(high) if high < 700 else math.inf,
        confidence,
        len(logs),
    )


def median_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """A distribution-free interval of the median of a series that may be autocorrelated.

    Order statistics with binomial ranks, at the number of independent values that the series is
    worth (:func:`effective_count`). Too few for the confidence: the range, widened. One: no bound.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"`confidence` must lie between 0 and 1, not {confidence}")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    if count < 2:
        return -math.inf, math.inf
    worth = min(count, max(2, int(effective_count(values))))
    rank, reached = _binomial_rank(worth, confidence)
    if rank == 0:
        middle = float(np.median(ordered))
        short = NormalDist().inv_cdf(0.5 + confidence / 2) / NormalDist().inv_cdf(0.5 + reached / 2)
        stretch = short * (1 + 2 / worth)
        return (
            middle - (middle - float(ordered[0])) * stretch,
            middle + (float(ordered[-1]) - middle) * stretch,
        )
    # The rank among `worth` values, carried over to the same place among all of them.
    place = math.floor((rank - 1) / (worth - 1) * (count - 1))
    return float(ordered[place]), float(ordered[count - 1 - place])


@lru_cache(maxsize=1024)
def _binomial_rank(count: int, confidence: float) -> tuple[int, float]:
    """The largest rank k such that values k and count+1-k enclose the median confidently enough.

    0 when none does; with it the confidence that the extreme values (k = 1) reach.
    """
    alpha = 1 - confidence
    reached = 1 - 2.0 ** (1 - count)
    if count > 400:  # the normal approximation is exact to a rank here
        z = NormalDist().inv_cdf(1 - alpha / 2)
        return max(1, math.floor(count / 2 - z * math.sqrt(count) / 2)), reached
    tail, rank = 0.0, 0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2.0**count
        if 2 * tail > alpha:
            break
        rank += 1
    return rank, reached


def effective_count(values: Values) -> float:
    """How many independent values an autocorrelated series is worth, for its median.

    The count over the integrated autocorrelation time of the signs around the median (they decide
    the median's spread), summed while neighbouring pairs stay positive and falling (Geyer 1992,
    "Practical Markov chain Monte Carlo", initial monotone sequence).
    """
    series = np.asarray(values, dtype=np.float64)
    count = len(series)
    if count < 4:
        return float(count)
    signs = np.sign(series - np.median(series))
    signs -= signs.mean()
    variance = float(signs @ signs) / count
    if variance <= 0:
        return float(count)

    time, last = -1.0, math.inf
    for lag in range(0, count - 1, 2):
        pair = sum(float(signs[: count - k] @ signs[k:]) for k in (lag, lag + 1))
        last = min(last, pair / count / variance)
        if last <= 0:
            break
        time += 2 * last
    time = max(1.0, time)
    # Subtracting the series' own mean hides correlation, the more the longer it reaches.
    return count / (time * (1 + 4 * time / count))


def interleaved_order(count: int, rounds: int, seed: int = 0) -> list[tuple[int, ...]]:
    """For each round, a shuffled order of ``count`` things."""
    rng = np.random.default_rng(seed)
    return [tuple(int(i) for i in rng.permutation(count)) for _ in range(rounds)]


def lower_mean(values: Values) -> float:
    """Mean of the lower half: what a thing takes while nothing else disturbs it.

    Other processes only ever add to a time, and a machine has slow spells of seconds, so the lower
    half repeats better than the middle (measured: half the error of a median), and its mean is
    finer than a quantile on whole-number ticks. Of an odd count the middle value counts half.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    if not count:
        raise UsageError("a mean needs at least one value")
    weights = np.clip(count / 2 - np.arange(count), 0, 1)
    return float(weights @ ordered / weights.sum())
