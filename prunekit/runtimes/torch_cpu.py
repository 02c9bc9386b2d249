"""PyTorch in eager mode on the CPU: a live module, timed as it is."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunekit.artifact import Artifact
from prunekit.errors import ModelError, UsageError
from prunekit.runtimes.base import Arrays, cpu_granularity, timing_inputs
from prunekit.target import Environment, Target, cpu_environment

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchCpu:
    """Runs live PyTorch modules."""

    name = "torch"
    artifact_format = "module"
    formats = ("module",)
    devices = ("cpu",)
    precisions = ("fp32", "bf16")
    casts = True

    def unavailable(self, target: Target) -> str | None:  # noqa: ARG002
        """Why PyTorch cannot be used."""
        try:
            import torch  # noqa: F401
        except ImportError as error:
            return f"`import torch` failed: {error}; pip install torch"
        return None

    def environment(self, target: Target) -> Environment:  # noqa: ARG002
        """The processor and PyTorch's version."""
        import torch

        return cpu_environment(f"torch {torch.__version__}")

    def granularity(self, target: Target) -> int:  # noqa: ARG002
        """The channel block of the kernels."""
        return cpu_granularity()

    def load(self, artifact: Artifact, target: Target) -> TorchEngine:
        """A copy of the module in the target's precision."""
        return TorchEngine(artifact, target)

    def profiler(self, artifact: Artifact, target: Target) -> TorchProfiler:
        """A copy of the module with a clock at every layer."""
        return TorchProfiler(artifact, target)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchEngine:
    """A module under inference mode; inputs are positional, in the artifact's order."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        import torch

        if artifact.module is None:
            raise ModelError(
                f"{artifact.path}: target {target} needs a live module; give a run folder or a "
                "model, not an exported file"
            )
        self._path, self._target = artifact.path, target
        self._names = tuple(artifact.input_shapes)
        self._dtype = torch.bfloat16 if target.precision == "bf16" else torch.float32
        with torch.inference_mode():
            module: nn.Module = copy.deepcopy(artifact.module).cpu().eval()
            self.module: nn.Module | None = module.to(self._dtype)
        self._bound = self._tensors(timing_inputs(artifact, target))

    def _tensors(self, inputs: Arrays) -> list[torch.Tensor]:
        import torch

        missing = [name for name in self._names if name not in inputs]
        if missing:
            raise UsageError(
                f"{self._path}: no input {missing[0]!r}; it takes {', '.join(self._names)}"
            )
        tensors = (torch.tensor(np.asarray(inputs[name])) for name in self._names)
        return [t.to(self._dtype) if t.is_floating_point() else t for t in tensors]

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``, as float32 where they are floating."""
        import torch

        module = self._loaded()
        tensors = self._tensors(inputs)
        with torch.inference_mode(), _threads(self._target.threads):
            try:
                outputs = module(*tensors)
            except RuntimeError as error:
                sizes = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._names)
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise UsageError(f"{self._path} does not run on {sizes}: {reason}") from error
        return [_array(tensor) for tensor in _flat(outputs)]

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each forward pass."""
        import torch

        module, bound, clock = self._loaded(), self._bound, time.perf_counter
        samples = []
        with torch.inference_mode(), _threads(self._target.threads):
            for _ in range(runs):
                start = clock()
                module(*bound)
                samples.append((clock() - start) * 1e3)
        return samples

    def _loaded(self) -> nn.Module:
        if self.module is None:
            raise UsageError(f"{self._path}: the engine is closed")
        return self.module

    def close(self) -> None:
        """Drop the copy of the module."""
        self.module = None
        self._bound = []


def _flat(outputs: Any) -> list[torch.Tensor]:
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts if part is not None for tensor in _flat(part)]


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


class TorchProfiler:
    """A layer's time runs from its start to the start of the next layer, epilogue included.

    What comes before the first layer is counted to it; a layer called several times adds up.
    """

    def __init__(self, artifact: Artifact, target: Target) -> None:
        from torch import nn
        from torch.nn.modules.conv import _ConvNd

        self._engine = TorchEngine(artifact, target)
        self._runs: list[dict[str, float]] = []
        self._stamps: list[tuple[str, float]] = []
        clock, stamps = time.perf_counter, self._stamps

        def watch(name: str, layer: nn.Module) -> None:
            def stamp(_module: nn.Module, _inputs: Any) -> None:
                stamps.append((name, clock()))

            layer.register_forward_pre_hook(stamp)

        for name, layer in self._engine._loaded().named_modules():
            if isinstance(layer, (_ConvNd, nn.Linear)):
                watch(name, layer)

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        import torch

        module, bound = self._engine._loaded(), self._engine._bound
        with torch.inference_mode(), _threads(self._engine._target.threads):
            for _ in range(runs):
                self._stamps.clear()
                start = time.perf_counter()
                module(*bound)
                end = time.perf_counter()
                self._runs.append(_spans(self._stamps, start, end))

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        self._engine.close()
        return self._runs[1:]


def _spans(stamps: list[tuple[str, float]], start: float, end: float) -> dict[str, float]:
    times: dict[str, float] = {}
    starts = [start, *(stamp for _, stamp in stamps[1:]), end]
    for (name, _), since, until in zip(stamps, starts, starts[1:], strict=False):
        times[name] = times.get(name, 0.0) + (until - since) * 1e6
    return times
