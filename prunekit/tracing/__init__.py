"""From a live model to its channel graph, proved on a copy before anyone uses it."""

from prunekit.tracing.trace import trace

__all__ = ["trace"]
