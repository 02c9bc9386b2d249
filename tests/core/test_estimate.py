"""Estimates from several sessions: their intervals hold, and more sessions tell more."""

import math

import numpy as np
import pytest

from prunekit.core.estimate import DRIFT, Estimate, estimate, of_interval, t_quantile
from prunekit.support.errors import UsageError


def coverage(spread, sessions, times=1500, *, alike=0.0, confidence=0.95):
    """How often the interval holds the truth, which drifts; neighbours may resemble each other."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(times):
        noise = rng.normal(0, spread, sessions)
        for i in range(1, sessions):
            noise[i] = alike * noise[i - 1] + math.sqrt(1 - alike**2) * noise[i]
        low, high = estimate(np.exp(noise + rng.normal(0, DRIFT))).interval(confidence)
        inside += low <= 1 <= high
    return inside / times


@pytest.mark.parametrize("spread", [0.001, 0.003, 0.006])
@pytest.mark.parametrize("sessions", [4, 8, 16])
def test_intervals_hold_as_often_as_they_say(spread, sessions):
    assert coverage(spread, sessions) >= 0.93


@pytest.mark.parametrize("sessions", [4, 8, 16])
def test_intervals_hold_on_a_machine_that_is_noisier_than_expected(sessions):
    assert coverage(0.03, sessions) >= 0.88


def test_sessions_that_resemble_each_other_count_for_less():
    naive = coverage(0.02, 12, alike=0.0)
    assert coverage(0.02, 12, alike=0.6) >= 0.8
    assert naive >= 0.93
    steps = np.exp(np.repeat([0.0, 0.02, -0.01, 0.03], 4))
    assert estimate(steps).sessions < 10
    mixed = np.exp(np.tile([0.0, 0.02, -0.01, 0.03], 4))
    assert estimate(mixed).sessions == 16


def test_more_sessions_narrow_it_down_to_the_drift():
    steps = [0.01, -0.01, 0.02, -0.02]
    reach = [estimate(np.exp(np.tile(steps, n))).reach(0.95) for n in (1, 4, 400)]
    assert reach[0] > reach[1] > reach[2] > 1.9 * DRIFT
    assert reach[2] < 1.1 * t_quantile(0.975, math.inf) * DRIFT
    assert estimate([1.0] * 400, lost=0.5).reach(0.95) > 0.09


def test_probability_and_interval_say_the_same():
    known = estimate([0.49, 0.50, 0.495, 0.492])
    low, high = known.interval(0.9)
    assert known.probability_below(high) == pytest.approx(0.95)
    assert known.probability_below(low) == pytest.approx(0.05)
    assert known.probability_below(known.value) == pytest.approx(0.5)
    assert known.probability_below(0) == 0


def test_sessions_to_tell():
    known = estimate([1.02, 0.98, 1.03, 0.97, 1.0])
    needed = known.sessions_to_tell(1.02, 0.95)
    assert 5 < needed < 100
    assert known.sessions_to_tell(1.2, 0.95) == 5
    assert known.sessions_to_tell(1.002, 0.95) == math.inf  # within what the drift leaves open


def test_quotients_and_units():
    known = estimate([0.5, 0.51, 0.49])
    assert known.scaled(2).value == pytest.approx(2 * known.value)
    assert known.scaled(2).scale == known.scale
    other = of_interval(0.25, 0.24, 0.26, 0.95)
    quotient = known.over(other)
    assert quotient.value == pytest.approx(2, rel=0.01)
    assert quotient.scale == pytest.approx(math.hypot(known.scale, other.scale))
    exact = of_interval(0.25, 0.25, 0.25, 0.95)
    assert known.over(exact).scale == known.scale
    assert Estimate(0.0, 0.0, 0.0, 1.0, 3.0).probability_below(1.0) == 1


def test_an_interval_gives_back_its_distribution():
    known = of_interval(0.5, 0.49, 0.511, 0.95)
    assert known.interval(0.95)[1] == pytest.approx(0.511)
    assert of_interval(0.5, 0.0, 0.6, 0.95).probability_below(0.4) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0]])
def test_what_is_not_positive_is_refused(values):
    with pytest.raises(UsageError, match="at least one positive value"):
        estimate(values)


def test_what_more_sessions_could_make_of_it():
    known = estimate([0.49, 0.50, 0.495, 0.515])
    assert known.probability_below(0.51) < 0.95 < known.could_be_below(0.51)
    assert known.could_be_below(0.503) < 0.95
