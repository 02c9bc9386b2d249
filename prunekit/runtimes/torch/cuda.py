"""PyTorch on a CUDA GPU: replays of a CUDA graph, timed by events on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes.nvidia.gpu import device_number, watch
from prunekit.runtimes.torch.module import ModuleEngine, spans
from prunekit.support.errors import first_line
from prunekit.support.progress import say

if TYPE_CHECKING:
    from prunekit.runtimes.torch.settings import TorchSettings

WARM_UP_RUNS = 3
"""Before a capture: kernels are chosen and memory is taken in the first runs."""


@contextmanager
def settings(precision: str) -> Iterator[None]:
    """The fastest kernels of cuDNN, and fp32 products exact unless ``precision`` is tf32."""
    # The older of two interfaces: torch.compile asks by it, and refuses a mixture.
    places: list[tuple[Any, str, bool]] = [
        (torch.backends.cudnn, "benchmark", True),
        (torch.backends.cudnn, "allow_tf32", precision == "tf32"),
        (torch.backends.cuda.matmul, "allow_tf32", precision == "tf32"),
    ]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


def event(*, external: bool = False) -> Any:
    """An event that tells times; an ``external`` one may be captured in a graph."""
    return torch.cuda.Event(enable_timing=True, external=external)  # type: ignore[no-untyped-call]


class DeviceClock:
    """Times work on a stream by two events; ``cold`` overwrites the L2 cache before."""

    def __init__(self, number: int, *, cold: bool) -> None:
        self.number = number
        self.stream: Any = torch.cuda.Stream(number)  # type: ignore[no-untyped-call]
        self._start, self._end = event(), event()
        self._flush: torch.Tensor | None = None
        if cold:
            size = 2 * torch.cuda.get_device_properties(number).L2_cache_size
            self._flush = torch.empty(size, dtype=torch.uint8, device=f"cuda:{number}")

    def time(self, work: Callable[[], object], runs: int) -> list[float]:
        """Milliseconds of each run on the device."""
        samples = []
        with torch.cuda.stream(self.stream):
            for _ in range(runs):
                if self._flush is not None:
                    self._flush.zero_()
                self._start.record()
                work()
                self._end.record()
                self._end.synchronize()
                samples.append(float(self._start.elapsed_time(self._end)))
        watch(self.number)
        return samples


class CudaEngine(ModuleEngine):
    """A module whose kernels are replayed from one CUDA graph, where it can be captured."""

    def __init__(self, artifact: Artifact, target: Target, settings: TorchSettings) -> None:
        self._number = device_number(target)
        last = (
            target.precision != "fp32" if settings.channels_last is None else settings.channels_last
        )
        layout = torch.channels_last if last else torch.preserve_format
        with torch.cuda.device(self._number):
            super().__init__(artifact, target, layout=layout)
            if settings.compiled:
                self._call = torch.compile(self._opened())
            self.clock = DeviceClock(self._number, cold=settings.cold)
            self.graph = self.captured(lambda: None, lambda: None) if settings.graphs else None

    def _during(self) -> AbstractContextManager[None]:
        return settings(self._target.precision)

    def eager(self) -> None:
        """One run on the bound inputs, on the current stream."""
        self._opened()(*self._bound)

    def captured(self, before: Callable[[], None], after: Callable[[], None]) -> Any:
        """A run on the bound inputs as a graph, between what else is to be captured; or None."""
        with torch.inference_mode(), self._during():
            with torch.cuda.stream(self.clock.stream):
                for _ in range(WARM_UP_RUNS):
                    self.eager()
            torch.cuda.synchronize(self._number)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self.clock.stream):
                    before()
                    self.eager()
                    after()
            except RuntimeError as error:
                reason = first_line(error, "no reason given")
                say(f"note: the network cannot be captured as a CUDA graph ({reason}); timed eager")
                torch.cuda.synchronize(self._number)
                return None
        return graph

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each run on the device."""
        self._opened()
        work = self.eager if self.graph is None else self.graph.replay
        with torch.inference_mode(), self._during(), torch.cuda.device(self._number):
            return self.clock.time(work, runs)

    def close(self) -> None:
        """Drop the graph and the copy of the module."""
        self.graph = None
        super().close()


class CudaProfiler:
    """An event at the start of every layer, captured in the graph with the layers' kernels.

    So the kernels follow each other as they do when the network is timed; where it cannot be
    captured, every run is eager and the gaps between launches are counted to the layers.
    """

    def __init__(self, artifact: Artifact, target: Target, settings: TorchSettings) -> None:
        self._engine = CudaEngine(artifact, target, replace(settings, graphs=False, compiled=False))
        self._marks: list[tuple[str, Any]] = []
        self._external = True
        self._runs: list[dict[str, float]] = []

        def mark(name: str) -> None:
            marked = event(external=self._external)
            marked.record()
            self._marks.append((name, marked))

        def before_layer(name: str) -> Callable[[nn.Module, Any], None]:
            return lambda _module, _inputs: mark(name)

        self._mark = mark
        for name, layer in self._engine.layers().items():
            layer.register_forward_pre_hook(before_layer(name))
        self._external = False  # of the warm-up, outside of any capture
        self._graph = (
            self._engine.captured(self._begin, lambda: mark("")) if settings.graphs else None
        )
        self._external = False

    def _begin(self) -> None:
        """The marks of the warm-up do not count."""
        self._marks.clear()
        self._external = True
        self._mark("")

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        for _ in range(runs):
            self._engine.clock.time(self._graph.replay if self._graph else self._eager, 1)
            (_, start), *layers, (_, end) = self._marks
            stamps = [(name, start.elapsed_time(event) / 1e3) for name, event in layers]
            self._runs.append(spans(stamps, 0.0, start.elapsed_time(end) / 1e3))

    def _eager(self) -> None:
        self._marks.clear()
        with torch.inference_mode(), self._engine._during():
            self._mark("")
            self._engine.eager()
            self._mark("")

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        self._engine.close()
        self._graph = None
        return self._runs[1:]
