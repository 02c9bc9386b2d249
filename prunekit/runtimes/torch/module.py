"""What live modules have in common on every device: a copy, its inputs, its layers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes.base import Arrays, timing_inputs
from prunekit.support.errors import ModelError, UsageError, first_line

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class TensorEngine(ABC):
    """Something called with tensors in the artifact's order; inputs for timing are bound once."""

    def __init__(
        self, path: str, shapes: dict[str, tuple[int, ...]], target: Target, dtype: torch.dtype
    ) -> None:
        self._path, self._target, self._dtype = path, target, dtype
        self._names = tuple(shapes)
        self._device = torch.device(target.device)
        self._call: Callable[..., Any] | None = None
        artifact = Artifact(path, "module", input_shapes=shapes)
        self._bound = self._tensors(timing_inputs(artifact, target))

    def _tensors(self, inputs: Arrays) -> list[torch.Tensor]:
        missing = [name for name in self._names if name not in inputs]
        if missing:
            raise UsageError(
                f"{self._path}: no input {missing[0]!r}; it takes {', '.join(self._names)}"
            )
        tensors = (torch.tensor(np.asarray(inputs[name])) for name in self._names)
        return [self._placed(t) for t in tensors]

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)

    @abstractmethod
    def _during(self) -> AbstractContextManager[None]:
        """The settings that runs take place under."""

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``, as float32 where they are floating."""
        call = self._opened()
        tensors = self._tensors(inputs)
        with torch.inference_mode(), self._during():
            try:
                outputs = call(*tensors)
            except RuntimeError as error:
                sizes = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._names)
                reason = first_line(error, "no reason given")
                raise UsageError(f"{self._path} does not run on {sizes}: {reason}") from error
        return [_array(tensor) for tensor in _flat(outputs)]

    def _opened(self) -> Callable[..., Any]:
        if self._call is None:
            raise UsageError(f"{self._path}: the engine is closed")
        return self._call

    @abstractmethod
    def time(self, runs: int) -> list[float]:
        """Milliseconds of each of ``runs`` runs on the bound inputs."""

    def close(self) -> None:
        """Drop what is called, and the inputs."""
        self._call = None
        self._bound = []


class ModuleEngine(TensorEngine):
    """A copy of a live module under inference mode, in the target's precision."""

    def __init__(
        self,
        artifact: Artifact,
        target: Target,
        *,
        layout: torch.memory_format = torch.preserve_format,
    ) -> None:
        if artifact.module is None:
            raise ModelError(
                f"{artifact.path}: target {target} needs a live module; give a run folder or a "
                "model, not an exported file"
            )
        self._layout = layout
        dtype = DTYPES[target.precision]
        super().__init__(artifact.path, artifact.input_shapes, target, dtype)
        with torch.inference_mode():
            module: nn.Module = copy.deepcopy(artifact.module).eval().to(self._device)
            self.module: nn.Module | None = module.to(dtype)
            if layout is not torch.preserve_format:
                self.module.to(memory_format=layout)
        self._call = self.module

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        placed = super()._placed(tensor)
        four = placed.dim() == 4 and self._layout is not torch.preserve_format
        return placed.contiguous(memory_format=self._layout) if four else placed

    def layers(self) -> dict[str, nn.Module]:
        """The layers that a table has entries for, by their modules' names."""
        self._opened()
        assert self.module is not None
        return {
            name: layer
            for name, layer in self.module.named_modules()
            if isinstance(layer, (_ConvNd, nn.Linear))
        }

    def close(self) -> None:
        """Drop the copy of the module."""
        super().close()
        self.module = None


def spans(stamps: list[tuple[str, float]], start: float, end: float) -> dict[str, float]:
    """Layer name to microseconds, from (layer, second it began) in running order.

    A layer's time runs from its start to the start of the next layer, epilogue included. What comes
    before the first is counted to it; a layer called several times adds up.
    """
    times: dict[str, float] = {}
    starts = [start, *(stamp for _, stamp in stamps[1:]), end]
    for (name, _), since, until in zip(stamps, starts, starts[1:], strict=False):
        times[name] = times.get(name, 0.0) + (until - since) * 1e6
    return times


def _flat(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts if part is not None for tensor in _flat(part)]


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.float() if tensor.is_floating_point() else tensor
    array: NDArray[Any] = plain.cpu().numpy()
    return array
