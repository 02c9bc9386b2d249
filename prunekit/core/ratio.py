"""How much longer one artifact takes than another, with what is known of that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prunekit.core.estimate import Estimate, of_interval


@dataclass(frozen=True)
class PairedRatio:
    """How much longer one artifact takes than another, from interleaved rounds.

    ``known`` is the distribution that the interval is of; None where only the interval is left.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    rounds: int
    sessions: int = 1
    known: Estimate | None = None

    @classmethod
    def of(
        cls, known: Estimate, confidence: float, rounds: int = 0, sessions: int = 1
    ) -> PairedRatio:
        """From an estimate, at a confidence."""
        return cls(known.value, *known.interval(confidence), confidence, rounds, sessions, known)

    @property
    def estimate(self) -> Estimate:
        """The distribution; of an interval alone, as wide as its wider side."""
        return self.known or of_interval(self.ratio, self.low, self.high, self.confidence)

    @property
    def half_width(self) -> float:
        """Half the interval, as a share of the ratio."""
        return (self.high - self.low) / 2 / self.ratio

    def scaled(self, factor: float) -> PairedRatio:
        """The same in other units."""
        known = self.known
        return replace(
            self,
            ratio=factor * self.ratio,
            low=factor * self.low,
            high=factor * self.high,
            known=None if known is None else known.scaled(factor),
        )

    def probability_below(self, limit: float) -> float:
        """How likely the ratio is at most ``limit``, on this machine."""
        return self.estimate.probability_below(limit)

    def __str__(self) -> str:
        share = f"{100 * self.confidence:g} %"
        return f"{self.ratio:.3f} ({share} interval {self.low:.3f} to {self.high:.3f})"
