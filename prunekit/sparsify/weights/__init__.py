"""Sparse weights: masks that act on the model itself, in one loop for all methods."""

from prunekit.sparsify.weights.exploring import IEE
from prunekit.sparsify.weights.loop import Sparsifier
from prunekit.sparsify.weights.methods import GMP, SET, RigL, Static
from prunekit.sparsify.weights.schedule import SparsitySchedule
from prunekit.sparsify.weights.semi_structured import semi_structured
from prunekit.sparsify.weights.verify import verify

METHODS: dict[str, type[Sparsifier]] = {
    method.name: method for method in (IEE, RigL, SET, GMP, Static)
}
"""By the names that the command line takes."""

__all__ = [
    "GMP",
    "IEE",
    "METHODS",
    "SET",
    "RigL",
    "Sparsifier",
    "SparsitySchedule",
    "Static",
    "semi_structured",
    "verify",
]
