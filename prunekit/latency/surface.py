"""The latency surface of one layer shape over (in-width, out-width)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

FLOOR_US = 2.0
"""Times below this count as this when errors are weighed: timers tick in microseconds."""


@dataclass(frozen=True)
class Surface:
    """t = a + b cin + c cout + d cin cout in microseconds, widths padded to the device's block.

    Coefficients are not negative, so the surface rises with both widths wherever it is used. It
    takes the samples' relative error as equally likely everywhere (weights 1/t).
    """

    coefficients: tuple[float, float, float, float]
    block: int
    diagonal: bool
    """In-width equals out-width (depthwise): only a + c cout is fitted."""

    @classmethod
    def fit(
        cls,
        cin: ArrayLike,
        cout: ArrayLike,
        us: ArrayLike,
        block: int = 1,
        diagonal: bool = False,
    ) -> Surface:
        """Weighted non-negative least squares over samples, each array of shape (samples,)."""
        features = _features(np.asarray(cin), np.asarray(cout), block)
        columns = [0, 2] if diagonal else [0, 1, 2, 3]
        target = np.asarray(us, dtype=np.float64)
        weight = 1.0 / np.maximum(target, FLOOR_US)
        scale = np.maximum(features.max(axis=0), 1e-12)
        found, _ = nnls((features / scale)[:, columns] * weight[:, None], target * weight)
        coefficients = np.zeros(4)
        coefficients[columns] = found
        coefficients /= scale
        a, b, c, d = coefficients.tolist()
        return cls((a, b, c, d), block, diagonal)

    def us(self, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Microseconds at the given widths; arrays broadcast."""
        a, b, c, d = self.coefficients
        left, right = pad(np.asarray(cin), self.block), pad(np.asarray(cout), self.block)
        return np.asarray(a + b * left + c * right + d * left * right, dtype=np.float64)


def pad(width: NDArray[np.int64], block: int) -> NDArray[np.float64]:
    """Widths rounded up to whole blocks, except those below one block, which run as they are."""
    padded = np.ceil(width / block) * block
    return np.where(width < block, width, padded).astype(np.float64)


def _features(cin: NDArray[np.int64], cout: NDArray[np.int64], block: int) -> NDArray[np.float64]:
    left, right = pad(cin, block), pad(cout, block)
    return np.stack([np.ones_like(left), left, right, left * right], axis=1)


def fit_or_constant(samples: Sequence[tuple[int, int, float]], block: int, kind: str) -> Surface:
    """The surface of ``samples`` (cin, cout, microseconds)."""
    cin, cout, us = (np.array(column) for column in zip(*samples, strict=True))
    return Surface.fit(cin, cout, us, block, diagonal=kind == "depthwise")
