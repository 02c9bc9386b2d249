"""Surfaces recover the laws behind their samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.latency import Surface
from prunekit.latency.surface import pad
from support.laws import law


def widths(rng, count, block, top=256):
    """Pairs of widths, not below one block."""
    return rng.integers(block, top + 1, (2, count))


COEFFICIENTS = st.tuples(
    st.floats(5, 50), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(1e-4, 0.02)
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(COEFFICIENTS, st.sampled_from([1, 8, 16]), st.integers(0, 99))
def test_a_surface_recovers_a_bilinear_law_with_padding(coefficients, block, seed):
    rng = np.random.default_rng(seed)
    cin, cout = widths(rng, 12, block)
    surface = Surface.fit(cin, cout, law(coefficients, cin, cout, block), block)
    cin, cout = widths(rng, 200, block)
    assert surface.us(cin, cout) == pytest.approx(law(coefficients, cin, cout, block), rel=1e-3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(COEFFICIENTS, st.integers(0, 99))
def test_noise_is_averaged_and_not_followed(coefficients, seed):
    rng = np.random.default_rng(seed)
    cin, cout = widths(rng, 40, 8)
    truth = law(coefficients, cin, cout, 8)
    surface = Surface.fit(cin, cout, truth * np.exp(0.02 * rng.standard_normal(40)), 8)
    error = np.abs(surface.us(cin, cout) / truth - 1)
    assert error.mean() < 0.02
    assert error.max() < 0.08


def test_a_depthwise_surface_depends_on_one_width():
    width = np.array([8, 16, 40, 64])
    surface = Surface.fit(width, width, 3 + 0.5 * width, 8, diagonal=True)
    assert surface.coefficients == pytest.approx((3, 0, 0.5, 0), abs=1e-9)
    assert surface.us(24, 24) == pytest.approx(15)
    assert surface.us(np.array([8, 16]), np.array([8, 16])) == pytest.approx([7, 11])


def test_widths_below_one_block_run_as_they_are():
    assert pad(np.array([1, 7, 8, 9, 16, 17]), 8).tolist() == [1, 7, 8, 16, 16, 24]
    assert pad(np.array([0, 5]), 1).tolist() == [1, 5]


def test_one_sample_gives_its_own_value():
    surface = Surface.fit([64], [64], [25.0])
    assert surface.us(64, 64) == pytest.approx(25.0, rel=1e-3)
    assert surface.us(np.array([[64], [64]]), np.array([64, 64])).shape == (2, 2)


def test_a_cliff_that_no_bilinear_law_has_is_followed():
    """Weights that outgrow a cache: twice the time above 128 channels."""
    cin = np.array([16, 32, 64, 96, 128, 160, 192, 224, 256] * 2)
    cout = np.repeat([64, 128], 9)
    truth = law((5, 0.1, 0.1, 0.01), cin, cout, 8) * np.where(cin > 128, 2, 1)
    surface = Surface.fit(cin, cout, truth, 8)
    trend = replace(surface, variance=0.0)
    error, without = (np.abs(s.us(cin, cout) / truth - 1) for s in (surface, trend))
    assert error.mean() < 0.07 < 0.2 < without.mean()
    assert error.max() < 0.25 < without.max()
