"""Which widths a budget allows: from a graph, scores and a latency table to a plan."""

from prunekit.allocation.allocate import Allocation, allocate, uniform
from prunekit.allocation.explain import GroupChange, explain

__all__ = ["Allocation", "GroupChange", "allocate", "explain", "uniform"]
