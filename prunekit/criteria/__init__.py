"""Saliency criteria: what a channel is worth."""

from prunekit.criteria.base import Accumulator, Criterion, WeightCriterion, score
from prunekit.criteria.bn_scale import BNScale
from prunekit.criteria.control import Random
from prunekit.criteria.fpgm import FPGM
from prunekit.criteria.inputs import InputCriterion
from prunekit.criteria.lamp import LAMP
from prunekit.criteria.magnitude import Magnitude, MagnitudeL1
from prunekit.criteria.reconstruction import Activation, Reconstruction
from prunekit.criteria.taylor import Taylor, TaylorWeight

__all__ = [
    "FPGM",
    "LAMP",
    "Accumulator",
    "Activation",
    "BNScale",
    "Criterion",
    "InputCriterion",
    "Magnitude",
    "MagnitudeL1",
    "Random",
    "Reconstruction",
    "Taylor",
    "TaylorWeight",
    "WeightCriterion",
    "score",
]
