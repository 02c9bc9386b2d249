"""Runtimes by name; each imports its own SDK, and only when used."""

from prunekit.runtimes.base import Engine, Profiler, Runtime, file_precision, runtime_for

__all__ = ["Engine", "Profiler", "Runtime", "file_precision", "runtime_for"]
