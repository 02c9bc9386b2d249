"""Latency tables: measured samples per layer shape, and the surfaces fitted to them."""

from prunekit.latency.surface import Surface
from prunekit.latency.table import Entry, LatencyTable, Network, Protocol, Sample

__all__ = ["Entry", "LatencyTable", "Network", "Protocol", "Sample", "Surface"]
