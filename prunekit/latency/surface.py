"""The latency surface of one layer shape over (in-width, out-width)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

FLOOR_US = 2.0
"""Times below this count as this when errors are weighed: timers tick in microseconds."""
NOISE = 0.02
"""Relative error of one sample that the residual process takes for noise."""
REACH_OCTAVES = 1.0
"""How far in width, in octaves, a sample's deviation from the trend is believed to carry."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A bilinear trend times a smooth correction, in microseconds, of padded widths.

    Trend: t = a + b cin + c cout + d cin cout with coefficients that are not negative, fitted to
    the relative error (what a blocked kernel does). Correction: a Gaussian process over the
    logarithms of the widths, fitted to the logarithm of sample over trend, which follows what the
    trend cannot: weights that outgrow a cache, other kernels for small widths. Far from all
    samples it fades to one.
    """

    coefficients: tuple[float, float, float, float]
    block: int
    points: Array
    """Shape (samples, 2): log2 of the padded widths."""
    weights: Array
    """Shape (samples,): the process' weights."""
    variance: float

    @classmethod
    def fit(
        cls,
        cin: ArrayLike,
        cout: ArrayLike,
        us: ArrayLike,
        block: int = 1,
        diagonal: bool = False,
    ) -> Surface:
        """Fit samples, each array of shape (samples,); ``diagonal``: in-width is out-width."""
        left, right = pad(np.asarray(cin), block), pad(np.asarray(cout), block)
        target = np.maximum(np.asarray(us, dtype=np.float64), 1e-3)
        coefficients = _trend(left, right, target, diagonal)
        points = np.stack([np.log2(left), np.log2(right)], axis=1)
        residual = np.log(target / _evaluate(coefficients, left, right))
        variance = float(max(np.mean(residual**2) - NOISE**2, 0.0))
        noise = (NOISE * np.maximum(1.0, FLOOR_US / target)) ** 2
        weights: Array = np.asarray(
            np.linalg.solve(_kernel(points, points, variance) + np.diag(noise), residual)
            if variance > 0
            else np.zeros(len(target)),
            dtype=np.float64,
        )
        return cls(coefficients, block, points, weights, variance)

    def us(self, cin: ArrayLike, cout: ArrayLike) -> Array:
        """Microseconds at the given widths; arrays broadcast."""
        left, right = np.broadcast_arrays(
            pad(np.asarray(cin), self.block), pad(np.asarray(cout), self.block)
        )
        trend = _evaluate(self.coefficients, left, right)
        if self.variance <= 0:
            return trend
        at = np.stack([np.log2(left).ravel(), np.log2(right).ravel()], axis=1)
        correction = _kernel(at, self.points, self.variance) @ self.weights
        return np.asarray(trend * np.exp(correction.reshape(left.shape)), dtype=np.float64)


def pad(width: NDArray[np.int64], block: int) -> Array:
    """Widths rounded up to whole blocks, except those below one block, which run as they are."""
    padded = np.ceil(width / block) * block
    return np.asarray(np.maximum(np.where(width < block, width, padded), 1), dtype=np.float64)


def _trend(
    left: Array, right: Array, target: Array, diagonal: bool
) -> tuple[float, float, float, float]:
    """Weighted non-negative least squares over [1, cin, cout, cin cout]."""
    features = np.stack([np.ones_like(left), left, right, left * right], axis=1)
    columns = [0, 2] if diagonal else [0, 1, 2, 3]
    weight = 1.0 / np.maximum(target, FLOOR_US)
    scale = np.maximum(features.max(axis=0), 1e-12)
    found, _ = nnls((features / scale)[:, columns] * weight[:, None], target * weight)
    coefficients = np.zeros(4)
    coefficients[columns] = found
    a, b, c, d = (coefficients / scale).tolist()
    return a, b, c, d


def _evaluate(coefficients: tuple[float, float, float, float], left: Array, right: Array) -> Array:
    a, b, c, d = coefficients
    return np.asarray(np.maximum(a + b * left + c * right + d * left * right, 1e-3))


def _kernel(a: Array, b: Array, variance: float) -> Array:
    """Squared-exponential covariance of two sets of points."""
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(variance * np.exp(-squared / (2 * REACH_OCTAVES**2)))
