"""The latency surface of one layer shape over (in-width, out-width)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

FLOOR_US = 2.0
"""Times below this count as this when errors are weighed: timers tick in microseconds."""
NOISE = 0.02
"""Relative error of one sample that the residual process takes for noise."""
LEAST_VARIANCE = 0.01**2
"""No trend is believed to fit better than this."""
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
    noise: Array
    """Shape (samples,): variance of each sample's logarithm."""

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
        coefficients = trend(left, right, target, diagonal)
        points = np.stack([np.log2(left), np.log2(right)], axis=1)
        residual = np.log(target / evaluate(coefficients, left, right))
        variance = float(max(np.mean(residual**2) - NOISE**2, LEAST_VARIANCE))
        noise = (NOISE * np.maximum(1.0, FLOOR_US / target)) ** 2
        covariance = _kernel(points, points, variance) + np.diag(noise)
        weights: Array = np.asarray(np.linalg.solve(covariance, residual), dtype=np.float64)
        return cls(coefficients, block, points, weights, variance, noise)

    def us(self, cin: ArrayLike, cout: ArrayLike) -> Array:
        """Microseconds at the given widths; arrays broadcast."""
        left, right = self._padded(cin, cout)
        trend = evaluate(self.coefficients, left, right)
        correction = self._covariance(left, right) @ self.weights
        return np.asarray(trend * np.exp(correction.reshape(left.shape)), dtype=np.float64)

    def deviation(self, cin: ArrayLike, cout: ArrayLike) -> Array:
        """Standard deviation of the correction's logarithm at the given widths: how unsure it is.

        Small near samples; far from all it is what samples leave the trend by. Arrays broadcast.
        """
        left, right = self._padded(cin, cout)
        near = self._covariance(left, right)
        covariance = _kernel(self.points, self.points, self.variance) + np.diag(self.noise)
        known = np.einsum("ij,ji->i", near, np.linalg.solve(covariance, near.T))
        left_over = np.sqrt(np.maximum(self.variance - known, 0.0))
        return np.asarray(left_over.reshape(left.shape), dtype=np.float64)

    def seen(self, cin: ArrayLike, cout: ArrayLike) -> Surface:
        """As sure as if there were samples at these widths too, shape (samples,), as predicted."""
        left, right = self._padded(cin, cout)
        points = np.stack([np.log2(left), np.log2(right)], axis=1)
        us = self.us(cin, cout)
        return replace(
            self,
            points=np.concatenate([self.points, points]),
            weights=np.concatenate([self.weights, np.zeros(len(points))]),
            noise=np.concatenate([self.noise, (NOISE * np.maximum(1.0, FLOOR_US / us)) ** 2]),
        )

    def _padded(self, cin: ArrayLike, cout: ArrayLike) -> tuple[Array, Array]:
        left, right = np.broadcast_arrays(
            pad(np.asarray(cin), self.block), pad(np.asarray(cout), self.block)
        )
        return left, right

    def _covariance(self, left: Array, right: Array) -> Array:
        """Shape (widths, samples)."""
        at = np.stack([np.log2(left).ravel(), np.log2(right).ravel()], axis=1)
        return _kernel(at, self.points, self.variance)


def pad(width: NDArray[np.int64], block: int) -> Array:
    """Widths rounded up to whole blocks, except those below one block, which run as they are."""
    padded = np.ceil(width / block) * block
    return np.asarray(np.maximum(np.where(width < block, width, padded), 1), dtype=np.float64)


def trend(
    left: Array, right: Array, target: Array, diagonal: bool, heed: Array | float = 1.0
) -> tuple[float, float, float, float]:
    """Coefficients of [1, cin, cout, cin cout], none negative, that fit by relative error.

    ``heed``, shape (samples,), is what every relative error is multiplied by.
    """
    features = np.stack([np.ones_like(left), left, right, left * right], axis=1)
    columns = [0, 2] if diagonal else [0, 1, 2, 3]
    weight = heed / np.maximum(target, FLOOR_US)
    scale = np.maximum(features.max(axis=0), 1e-12)
    solution, _ = nnls((features / scale)[:, columns] * weight[:, None], target * weight)
    coefficients = np.zeros(4)
    coefficients[columns] = solution
    a, b, c, d = (coefficients / scale).tolist()
    return a, b, c, d


def evaluate(coefficients: tuple[float, float, float, float], left: Array, right: Array) -> Array:
    """The trend at these widths, in microseconds."""
    a, b, c, d = coefficients
    return np.asarray(np.maximum(a + b * left + c * right + d * left * right, 1e-3))


def _kernel(a: Array, b: Array, variance: float) -> Array:
    """Squared-exponential covariance of two sets of points."""
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(variance * np.exp(-squared / (2 * REACH_OCTAVES**2)))
