"""Statistics of timings: intervals that cover, orders, means of ticks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.core.timing import (
    Measurement,
    effective_count,
    interleaved_order,
    lower_mean,
    median_interval,
    paired_ratio,
)
from prunekit.measuring.bench import LOOKS
from prunekit.support.errors import UsageError


def machine(rng, rounds, *, ratio=1.0, dwell=20, slow=1.2, slow_ratio=1.0, drift=0.0, noise=0.02):
    """Two series of round values on a machine that is slow for ``dwell`` rounds at a time."""
    state = np.empty(rounds, dtype=bool)
    state[0] = rng.random() < 0.25
    for i in range(1, rounds):
        leave = 1 / dwell if state[i - 1] else 1 / (3 * dwell)
        state[i] = state[i - 1] ^ (rng.random() < leave)
    common = np.where(state, slow, 1.0) * np.exp(drift * np.arange(rounds) / rounds)
    a = 5 * common * np.exp(rng.normal(0, noise, rounds))
    b = 5 * ratio * common * np.exp(rng.normal(0, noise, rounds)) * np.where(state, slow_ratio, 1)
    for series in (a, b):
        hit = rng.random(rounds) < 0.05
        series[hit] *= 1 + rng.exponential(0.3, hit.sum())
    return a, b


def coverage(truth, rounds, times, confidence=0.95, **facts):
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(times):
        found = paired_ratio(*machine(rng, rounds, **facts), confidence)
        inside += found.low <= truth <= found.high
    return inside / times


@pytest.mark.parametrize("rounds", [8, 15, 40, 120])
def test_interval_of_a_ratio_covers_it_while_the_machine_drifts_and_changes_state(rounds):
    assert coverage(1.1, rounds, 300, ratio=1.1, drift=0.3) >= 0.93


@pytest.mark.parametrize("rounds", range(5, 9))
def test_the_interval_of_few_rounds_misses_no_more_often_than_it_says(rounds):
    rng = np.random.default_rng(rounds)
    for confidence in (0.95, 0.99, 1 - 0.01 / LOOKS):
        missed = 0
        for values in rng.standard_normal((1000, rounds)):
            low, high = median_interval(values, confidence)
            missed += not low <= 0 <= high
        assert missed / 1000 <= 1 - confidence


@pytest.mark.parametrize("rounds", [25, 100])
def test_interval_covers_where_the_states_differ_in_the_ratio_too(rounds):
    facts = {"slow_ratio": 1.03, "dwell": 8}
    a, b = machine(np.random.default_rng(1), 200_000, **facts)
    truth = math.exp(np.median(np.log(b / a)))
    assert 1.002 < truth < 1.03
    assert coverage(truth, rounds, 300, **facts) >= 0.90


def test_naive_order_statistics_would_not_cover_correlated_rounds():
    rng = np.random.default_rng(3)
    honest = naive = 0
    for _ in range(300):
        steps = rng.normal(0, 0.02, 100)
        for i in range(1, 100):
            steps[i] = 0.7 * steps[i - 1] + math.sqrt(1 - 0.49) * steps[i]
        low, high = median_interval(steps)
        honest += low <= 0 <= high
        ordered = np.sort(steps)
        naive += ordered[39] <= 0 <= ordered[60]
    assert honest / 300 >= 0.90 > naive / 300


def test_interval_narrows_with_rounds_and_widens_with_confidence():
    rng = np.random.default_rng(0)
    a, b = machine(rng, 400)
    few, many = paired_ratio(a[:20], b[:20]), paired_ratio(a, b)
    assert many.half_width < few.half_width / 2
    surer = paired_ratio(a, b, 0.999)
    assert surer.low < many.low < many.ratio < many.high < surer.high
    assert many.rounds == 400
    assert many.half_width < 0.01


def test_ratio_is_of_the_second_to_the_first():
    found = paired_ratio([1.0, 2.0, 4.0] * 5, [2.0, 4.0, 8.0] * 5)
    assert (found.ratio, found.low, found.high) == pytest.approx((2, 2, 2))
    assert str(found) == "2.000 (95 % interval 2.000 to 2.000)"


def test_too_few_rounds_give_wide_intervals_not_none():
    assert paired_ratio([1.0], [1.1]).low == 0
    assert paired_ratio([1.0], [1.1]).high == math.inf
    found = paired_ratio([1.0, 1.0, 1.0], [1.1, 1.2, 1.0])
    assert found.low < 1.0
    assert found.high > 1.2


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "at least one"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([1.0, 0.0], [1.0, 1.0], "positive"),
    ],
)
def test_bad_rounds_are_named(a, b, message):
    with pytest.raises(UsageError, match=message):
        paired_ratio(a, b)


def test_confidence_must_be_a_share():
    with pytest.raises(UsageError, match="`confidence`"):
        median_interval([1.0, 2.0], 95)


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=60), st.floats(0.5, 0.999))
def test_interval_encloses_the_median_and_ratio_inverts(values, confidence):
    low, high = median_interval(values, confidence)
    assert low <= np.median(values) * (1 + 1e-12)
    assert high >= np.median(values) * (1 - 1e-12)
    ones = [1.0] * len(values)
    there, back = paired_ratio(ones, values), paired_ratio(values, ones)
    assert there.ratio * back.ratio == pytest.approx(1)


def test_effective_count_is_the_count_of_independent_values():
    rng = np.random.default_rng(0)
    assert 700 < effective_count(rng.normal(size=1000)) <= 1000
    assert 10 < effective_count(np.repeat(rng.normal(size=50), 20)) < 100
    assert effective_count([1.0, 1.0, 1.0, 1.0, 1.0]) == 5


def test_measurement_statistics():
    measured = Measurement(tuple(float(v) for v in range(1, 102)))
    assert measured.median_ms == 51
    assert (measured.p10_ms, measured.p90_ms, measured.p99_ms) == (11, 91, 100)
    assert measured.iqr_ms == 50
    assert measured.cv == pytest.approx(np.std(range(1, 102)) / 51)
    assert measured.samples_ms[0] == 1
    rng = np.random.default_rng(0)
    noisy = Measurement(tuple(rng.lognormal(1, 0.1, 300)))
    low, high = noisy.interval(0.95)
    assert low < noisy.median_ms < high < 1.1 * low
    with pytest.raises(UsageError, match="at least one sample"):
        Measurement(())


def test_interleaved_order_is_shuffled_complete_and_repeatable():
    orders = interleaved_order(4, 50, seed=1)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 10
    assert orders == interleaved_order(4, 50, seed=1)
    assert orders != interleaved_order(4, 50, seed=2)


def test_lower_mean_resolves_ticks_and_ignores_slow_spells():
    assert lower_mean([3]) == 3
    assert lower_mean([4, 1, 3, 2]) == 1.5
    assert lower_mean([20, 0, 10]) == pytest.approx(10 / 3)
    rng = np.random.default_rng(0)
    clean = rng.normal(7.3, 0.6, 4000)
    assert lower_mean(np.round(clean)) == pytest.approx(lower_mean(clean), abs=0.1)
    slow = clean * np.where(np.arange(4000) < 1600, 1.3, 1.0)
    fast = float(np.median(clean))
    assert abs(lower_mean(slow) / fast - 1) < 0.05 < abs(np.median(slow) / fast - 1)
    with pytest.raises(UsageError, match="at least one"):
        lower_mean([])
