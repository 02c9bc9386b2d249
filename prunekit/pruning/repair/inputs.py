"""The images that a repair goes by: taken from batches until they are enough, as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.networks.products import Survey
from prunekit.networks.running import evaluating, refusing
from prunekit.support.errors import DataError, UsageError
from prunekit.tasks.base import run

IMAGES = 1024
"""So many are used at most."""
MEMORY = 2 << 30
"""Bytes of activations at once, at most: fewer images are used where they are large."""
FEWEST = 10
"""Two of them are held out, and eight are solved from."""
_LIVE = 3
"""Activations of the largest layer's size that are there at once, about."""


@torch.no_grad()
def survey_of(model: nn.Module, inputs: Any) -> Survey:
    """One run of ``model``, watched; raises ModelError where it refuses the inputs."""
    survey = Survey(model)
    with evaluating(model), refusing(model, inputs), survey:
        run(model, inputs)
    return survey


def first_of(inputs: Any, count: int = 1) -> Any:
    """The first ``count`` images of a batch."""
    return _each(inputs, lambda tensor: tensor[:count])


def held_out(inputs: Any, every: int) -> Any:
    """Those images that nothing is fitted to: the last of ``every`` in a row."""
    return _each(inputs, lambda tensor: tensor[every - 1 :: every])


def fitted_to(inputs: Any, every: int) -> Any:
    """All others."""
    return _each(inputs, lambda tensor: tensor[torch.arange(len(tensor)) % every != every - 1])


def count_of(inputs: Any) -> int:
    """Images in a batch."""
    return len(_tensors(inputs)[0])


def gathered(batches: Iterable[Any], model: nn.Module, memory: int = MEMORY) -> tuple[Any, Survey]:
    """Images of ``batches`` in one batch, and what one of them showed of ``model``.

    A batch is a tensor, several (a tuple), or several by name. Raises DataError where there are
    fewer than :data:`FEWEST`, or where they differ in shape.
    """
    parts: list[Any] = []
    survey: Survey | None = None
    most, count = IMAGES, 0
    for batch in batches:
        if not _tensors(batch):
            raise UsageError(
                f"`batches` gives {type(batch).__name__}; inputs are needed: a tensor, or several "
                "in a tuple or a dictionary, without labels"
            )
        if survey is None:
            survey = survey_of(model, first_of(batch))
            most = max(FEWEST, min(IMAGES, memory // max(1, _LIVE * survey.bytes)))
        if parts and _shapes(batch) != _shapes(parts[0]):
            raise DataError(
                f"images of {_shapes(batch)} after images of {_shapes(parts[0])}; repair needs all "
                "of one size: resize them"
            )
        parts.append(first_of(batch, most - count))
        count += count_of(parts[-1])
        if count >= most:
            break
    if survey is None or count < FEWEST:
        raise DataError(f"repair has {count} images and needs at least {FEWEST}; give more")
    return _joined(parts), survey


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    values = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    good = all(isinstance(value, Tensor) and value.ndim for value in values)
    return list(values) if good else []


def _shapes(inputs: Any) -> str:
    return ", ".join("x".join(map(str, tensor.shape[1:])) for tensor in _tensors(inputs))


def _each(inputs: Any, change: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(change(tensor) for tensor in inputs)
    return change(inputs)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return torch.cat(parts)


def skipped(inputs: Any, start: int) -> Any:
    """All images but the first ``start``."""
    return _each(inputs, lambda tensor: tensor[start:])
