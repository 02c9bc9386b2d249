"""PyTorch in eager mode on the CPU: a live module, timed as it is."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes.torch.module import ModuleEngine, spans
from prunekit.support.threads import threads


class CpuEngine(ModuleEngine):
    """A module under inference mode; inputs are positional, in the artifact's order."""

    def _during(self) -> AbstractContextManager[None]:
        return threads(self._target.threads)

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each forward pass."""
        module, bound, clock = self._opened(), self._bound, time.perf_counter
        samples = []
        with torch.inference_mode(), self._during():
            for _ in range(runs):
                start = clock()
                module(*bound)
                samples.append((clock() - start) * 1e3)
        return samples


class CpuProfiler:
    """A clock at the start of every layer (see :func:`prunekit.runtimes.torch.module.spans`)."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._engine = CpuEngine(artifact, target)
        self._runs: list[dict[str, float]] = []
        self._stamps: list[tuple[str, float]] = []
        clock, stamps = time.perf_counter, self._stamps

        def watch(name: str, layer: nn.Module) -> None:
            def stamp(_module: nn.Module, _inputs: Any) -> None:
                stamps.append((name, clock()))

            layer.register_forward_pre_hook(stamp)

        for name, layer in self._engine.layers().items():
            watch(name, layer)

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        module, bound = self._engine._opened(), self._engine._bound
        with torch.inference_mode(), self._engine._during():
            for _ in range(runs):
                self._stamps.clear()
                start = time.perf_counter()
                module(*bound)
                end = time.perf_counter()
                self._runs.append(spans(self._stamps, start, end))

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        self._engine.close()
        return self._runs[1:]
