"""Pruning methods as rules that a training loop calls; none has a training loop of its own."""

from prunekit.sparsify.explain import GroupChange, explain
from prunekit.sparsify.halp import Halp
from prunekit.sparsify.iee import IEE
from prunekit.sparsify.schedule import IEESchedule
from prunekit.sparsify.solve import Allocation, allocate, uniform

__all__ = [
    "IEE",
    "Allocation",
    "GroupChange",
    "Halp",
    "IEESchedule",
    "allocate",
    "explain",
    "uniform",
]
