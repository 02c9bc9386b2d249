"""Calibrations: scale, cost per call, and errors of networks left out."""

from __future__ import annotations

import numpy as np
import pytest

from support.laws import lawful, sampled


def test_calibration_recovers_scale_and_cost_per_call():
    calibration = sampled(lawful).calibration
    assert calibration.scale == pytest.approx(1.2, rel=1e-3)
    assert calibration.per_call_us == pytest.approx(-1.0, abs=0.05)
    assert calibration.nets == 6  # the dense one and the fastest are in every fit


def test_the_error_of_nets_left_out_is_small_for_a_law_and_large_for_nonsense():
    good = sampled(lawful).calibration
    assert good.mape <= good.worst < 0.01
    rng = np.random.default_rng(1)
    noisy = sampled(lambda *a: lawful(*a) * np.exp(0.05 * rng.standard_normal())).calibration
    assert good.worst < noisy.mape < 0.1
    bad = sampled(lambda *a: float(np.exp(rng.uniform(0, 8)))).calibration
    assert bad.worst > bad.mape > 0.3


def test_too_few_nets_have_no_error():
    assert sampled(lawful, nets=3).calibration.nets == 0
    one = sampled(lawful, nets=1).calibration
    assert one.per_call_us == 0
    assert one.scale == pytest.approx(1.2, abs=0.05)
