"""Pruning methods as rules that a training loop calls; none has a training loop of its own.

`IEE`, `RigL`, `SET`, `GMP` and `Static` here are the methods for single weights; IEE for channels
is `prunekit.IEE`.
"""

from prunekit.sparsify.explain import GroupChange, explain
from prunekit.sparsify.halp import Halp
from prunekit.sparsify.schedule import IEESchedule
from prunekit.sparsify.solve import Allocation, allocate, uniform
from prunekit.sparsify.weights import (
    GMP,
    IEE,
    METHODS,
    SET,
    RigL,
    Sparsifier,
    SparsitySchedule,
    Static,
    semi_structured,
    verify,
)

__all__ = [
    "GMP",
    "IEE",
    "METHODS",
    "SET",
    "Allocation",
    "GroupChange",
    "Halp",
    "IEESchedule",
    "RigL",
    "Sparsifier",
    "SparsitySchedule",
    "Static",
    "allocate",
    "explain",
    "semi_structured",
    "uniform",
    "verify",
]
