"""Saliency criteria: what a channel is worth."""

from prunekit.criteria.base import Accumulator, Criterion, score
from prunekit.criteria.magnitude import Magnitude
from prunekit.criteria.taylor import Taylor

__all__ = ["Accumulator", "Criterion", "Magnitude", "Taylor", "score"]
