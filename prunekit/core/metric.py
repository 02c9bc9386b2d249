"""What a network is judged by: a metric's name, unit and direction, and how its values are told."""

from __future__ import annotations

from dataclasses import dataclass

PERCENT = "%"
"""The unit of shares, which are kept as 0 to 1."""


@dataclass(frozen=True)
class Metric:
    """One figure of a network on a data set.

    ``key`` is its name in logs and files, ``name`` that on pages. Values in percent are kept as
    shares, 0 to 1; those of any other ``unit`` as they are.
    """

    key: str
    name: str
    unit: str = PERCENT
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """A value as it is told.

        Examples:
            >>> Metric("accuracy", "top-1").text(0.9875)
            '98.75%'
            >>> Metric("mae", "mean absolute error", "mm", higher_is_better=False).text(0.25)
            '0.2500 mm'
        """
        if self.unit == PERCENT:
            return f"{value:.2%}"
        return f"{value:.4f} {self.unit}".rstrip()

    def apart(self, dense: float, pruned: float) -> str:
        """How far ``pruned`` is from ``dense``: in points, or in the metric's own unit."""
        if self.unit == PERCENT:
            return f"{100 * (pruned - dense):+.2f} points"
        return f"{pruned - dense:+.4f} {self.unit}".rstrip()

    def better(self, value: float, other: float) -> float:
        """The better one of two values."""
        return max(value, other) if self.higher_is_better else min(value, other)
