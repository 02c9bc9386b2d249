"""From values to positions in a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values to positions along a chart, in percent of its width or height."""

    low: float
    high: float

    def __call__(self, value: float) -> str:
        """The position as SVG writes it."""
        return f"{self.percent(value):.3f}%"

    def span(self, low: float, high: float) -> str:
        """The length from ``low`` to ``high``."""
        return f"{self.percent(high) - self.percent(low):.3f}%"

    def anchor(self, value: float) -> str:
        """How a text at ``value`` is aligned so that it stays inside the chart."""
        place = self.percent(value)
        return "start" if place < 15 else "end" if place > 85 else "middle"

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside, at most ``most``."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def percent(self, value: float) -> float:
        """The position as a number; a value outside lies on the edge."""
        inside = min(max(value, self.low), self.high)
        return 100 * (inside - self.low) / (self.high - self.low)


def scale_around(values: Iterable[float]) -> Scale:
    """A scale with some room at both ends, which never begins below zero for its own sake."""
    values = list(values)
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.005)
    return Scale(max(min(0.0, low), low - room), high + room)


def tick_texts(ticks: list[float]) -> list[str]:
    """Percentages with as many digits as it takes to tell them apart."""
    for digits in range(4):
        texts = [f"{tick:.{digits}%}" for tick in ticks]
        if all(
            abs(float(t[:-1]) / 100 - tick) < 1e-6 for t, tick in zip(texts, ticks, strict=True)
        ):
            break
    return texts


def from_top(up: Scale, value: float) -> str:
    """The place of a value on an upright scale, as a distance from the top."""
    return f"{100 - up.percent(value):.3f}%"
