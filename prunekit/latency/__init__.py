"""Latency tables: measured samples per layer shape, and the surfaces fitted to them."""

from prunekit.latency.comparing import TableDiff, diff
from prunekit.latency.merging import merge
from prunekit.latency.records import Entry, Network, Sample
from prunekit.latency.surface import Surface
from prunekit.latency.table import LatencyTable, Protocol

__all__ = [
    "Entry",
    "LatencyTable",
    "Network",
    "Protocol",
    "Sample",
    "Surface",
    "TableDiff",
    "diff",
    "merge",
]
