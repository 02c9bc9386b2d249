"""Pruning methods as rules that a training loop calls; none has a training loop of its own."""

from prunekit.sparsify.halp import Halp
from prunekit.sparsify.solve import Allocation, allocate

__all__ = ["Allocation", "Halp", "allocate"]
