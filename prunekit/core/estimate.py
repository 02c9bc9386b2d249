"""What several sessions of one measurement say together, and how sure that is.

A session is one loading of the engines. Where their buffers lie in memory, the clocks, and what
else the host does change from one session to the next and from one minute to the next, so that the
interval of a single session knows nothing of it. The model is a random effect per session: its
variance is taken from the sessions themselves, helped by a prior where they are few (the moderated
t of Smyth 2004, "Linear models and empirical Bayes methods"), and two terms that no number of
sessions takes away: the drift over minutes, and what other processes do to caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunekit.support.errors import UsageError

PRIOR_SD, PRIOR_DOF = 0.006, 1.0
"""Between sessions, in logarithms, before any was seen; worth one of them."""
DRIFT = 0.004
"""Standard deviation of a ratio's logarithm from minute to minute, beyond that of sessions."""
DRIFT_ALONE = 0.015
"""The same of the latency of one artifact, with nothing to cancel the machine's moods."""
CONTENTION = 0.1
"""Standard deviation that comes with each share of the processor's time that others took."""
BUSY = 0.1
"""Other processes took so much of the time that they are why an answer is open."""
FEWEST_TO_CORRELATE = 6


@dataclass(frozen=True)
class Estimate:
    """A positive quantity known up to noise: its logarithm has Student's t distribution.

    ``spread`` is the standard deviation between sessions, ``floor`` what more sessions cannot take
    away; both of the logarithm, so nearly shares of the quantity.
    """

    log: float
    spread: float
    floor: float
    sessions: float
    """How many independent sessions they are worth."""
    dof: float
    """Degrees of freedom of ``spread``."""

    @property
    def value(self) -> float:
        """The quantity itself."""
        return math.exp(self.log)

    @property
    def scale(self) -> float:
        """Standard error of the logarithm."""
        return math.hypot(self.spread / math.sqrt(self.sessions), self.floor)

    @property
    def own_dof(self) -> float:
        """Degrees of freedom of :attr:`scale`, whose floor is known (Satterthwaite)."""
        sampled = self.spread**2 / self.sessions
        if not 0 < sampled < math.inf:
            return math.inf
        return self.dof * (self.scale**2 / sampled) ** 2

    def reach(self, confidence: float) -> float:
        """Half of the interval of the logarithm."""
        return self.scale * t_quantile(0.5 + confidence / 2, self.own_dof)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Where the quantity lies with this confidence."""
        reach = self.reach(confidence)
        return math.exp(self.log - reach), math.exp(self.log + reach)

    def probability_below(self, limit: float) -> float:
        """How likely the quantity is at most ``limit``."""
        from scipy.special import stdtr

        if limit <= 0:
            return 0.0
        if self.scale == 0:
            return float(self.value <= limit)
        if math.isinf(self.scale):
            return 0.5
        return float(stdtr(min(self.own_dof, 1e6), (math.log(limit) - self.log) / self.scale))

    def could_be_below(self, limit: float) -> float:
        """:meth:`probability_below`, had sessions without end said the same as those so far."""
        return replace(self, spread=0.0).probability_below(limit)

    def sessions_to_tell(self, limit: float, confidence: float) -> float:
        """How many sessions it takes until the interval leaves ``limit`` out; infinite if none do.

        As far as can be told from the spread so far.
        """
        gap = abs(math.log(limit) - self.log)
        count = max(self.sessions, 1.0)
        while count < 1e4:
            if replace(self, sessions=count, dof=self.dof + count).reach(confidence) < gap:
                return count
            count *= 1.1
        return math.inf

    def scaled(self, factor: float) -> Estimate:
        """The same in other units."""
        return replace(self, log=self.log + math.log(factor))

    def over(self, other: Estimate) -> Estimate:
        """The quantity divided by an independent one."""
        scale = math.hypot(self.scale, other.scale)
        parts = (one.scale**4 / one.own_dof for one in (self, other) if one.scale > 0)
        dof = scale**4 / denominator if (denominator := sum(parts)) > 0 else math.inf
        return Estimate(self.log - other.log, scale, 0.0, 1.0, dof)


def estimate(values: Sequence[float], *, drift: float = DRIFT, lost: float = 0.0) -> Estimate:
    """From one value per session, in the order measured.

    ``drift`` is the standard deviation of the logarithm over minutes, ``lost`` the share of the
    processor's time that other processes took.

    Examples:
        >>> found = estimate([0.497, 0.502, 0.499, 0.503])
        >>> low, high = found.interval(0.95)
        >>> print(f"{found.value:.3f} [{low:.3f}, {high:.3f}]")
        0.500 [0.495, 0.505]
    """
    logs = np.asarray(values, dtype=np.float64)
    if logs.ndim != 1 or not logs.size or not (logs > 0).all():
        raise UsageError("an estimate needs at least one positive value")
    logs = np.log(logs)
    squares = float(((logs - logs.mean()) ** 2).sum())
    dof = PRIOR_DOF + len(logs) - 1
    spread = math.sqrt((PRIOR_DOF * PRIOR_SD**2 + squares) / dof)
    floor = math.hypot(drift, CONTENTION * lost)
    return Estimate(float(logs.mean()), spread, floor, _worth(logs), dof)


def of_interval(value: float, low: float, high: float, confidence: float) -> Estimate:
    """A quantity of which only an interval is left, such as one in a file."""
    z = t_quantile(0.5 + confidence / 2, math.inf)
    below = math.log(value / low) if low > 0 else math.inf
    scale = max(below, math.log(high / value)) / z
    return Estimate(math.log(value), scale, 0.0, 1.0, math.inf)


def _worth(logs: np.ndarray) -> float:
    """How many independent values a series is worth whose neighbours resemble each other."""
    count = len(logs)
    centred = logs - logs.mean()
    squares = float(centred @ centred)
    if count < FEWEST_TO_CORRELATE or squares <= 0:
        return float(count)
    # subtracting the series' own mean hides correlation of about 1 / count
    alike = max(0.0, float(centred[1:] @ centred[:-1]) / squares + 1 / count)
    # what noise alone gives in a series so short is not taken for correlation
    alike = alike if alike > 1 / math.sqrt(count) else 0.0
    return max(2.0, count * (1 - alike) / (1 + alike))


def t_quantile(probability: float, dof: float) -> float:
    """Of Student's t distribution."""
    from scipy.special import ndtri, stdtrit

    if dof > 1e6:
        return float(ndtri(probability))
    return float(stdtrit(dof, probability))
