"""Ratios with what is known of them."""

import pytest

from prunekit.core.estimate import estimate
from prunekit.core.ratio import PairedRatio


def test_a_ratio_of_an_estimate_keeps_its_distribution():
    known = estimate([0.5, 0.505, 0.498, 0.502])
    ratio = PairedRatio.of(known, 0.95, rounds=40, sessions=4)
    assert ratio.low < ratio.ratio < ratio.high
    assert ratio.estimate is known
    assert ratio.probability_below(ratio.high) == pytest.approx(0.975)
    assert "95 % interval" in str(ratio)


def test_a_ratio_of_an_interval_takes_its_wider_side():
    ratio = PairedRatio(0.5, 0.49, 0.495 + 0.035, 0.95, 10)
    assert ratio.probability_below(0.53) == pytest.approx(0.975, abs=0.001)


def test_other_units_change_no_probability():
    for ratio in (
        PairedRatio.of(estimate([0.5, 0.51, 0.49]), 0.95),
        PairedRatio(0.5, 0.49, 0.51, 0.95, 10),
    ):
        there = ratio.scaled(3)
        assert there.ratio == pytest.approx(3 * ratio.ratio)
        assert there.probability_below(1.53) == pytest.approx(ratio.probability_below(0.51))
        assert there.half_width == pytest.approx(ratio.half_width)
