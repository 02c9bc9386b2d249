"""Sparse weights: masks that act on the model itself, in one loop for all methods.

`IEE` here is the method for single weights; for channels it is `prunekit.IEE`.
"""

from prunekit.networks.zeros import verify
from prunekit.sparsify.iee import IEE
from prunekit.sparsify.methods import GMP, SET, RigL, Static
from prunekit.sparsify.schedule import SparsitySchedule
from prunekit.sparsify.semi_structured import semi_structured
from prunekit.sparsify.sparsifier import Sparsifier

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
