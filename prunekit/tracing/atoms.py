"""A forward of the model with its channels followed: their atoms, what runs between layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.tracing import operators  # noqa: F401 - registers what is known of operators
from prunekit.tracing.flow import Flow, Operation
from prunekit.tracing.nodes import Atom

SECONDS = 60.0
"""How long channels may be followed; what is not reached by then stays as it is."""


@dataclass(frozen=True)
class Followed:
    """What one forward told."""

    flow: Flow
    atoms: list[Atom]
    operations: list[Operation]
    shapes: list[tuple[int, ...]]
    """Of the outputs in evaluation mode."""


def follow(model: nn.Module, example: Any, training_example: Any = None) -> Followed:
    """Run ``model``, a copy on the CPU in evaluation mode, and follow its channels.

    With a ``training_example`` also in training mode, for heads that only training has.
    """
    flow = Flow(model, time.monotonic() + SECONDS)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), flow:
            out = [call(model, example)]
            operations = list(flow.operations)
            if training_example is not None:
                with suppress(Exception):  # a detector needs targets, for example
                    out.append(call(_training(model), training_example))
        flow.finish(tensors(out))
    except ModelError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"cannot trace {type(model).__name__}: {type(error).__name__}: {cause}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        flow.close()
        model.eval()
    shapes = [tuple(t.shape) for t in tensors(out[0])]
    return Followed(flow, flow.nodes.atoms(), operations, shapes)


def _training(model: nn.Module) -> nn.Module:
    """The model in training mode, without chance."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def call(model: nn.Module, example: Any) -> Any:
    """``model`` on a tuple or dict of inputs."""
    return model(**example) if isinstance(example, dict) else model(*example)


def batch_of_two(example: Any) -> Any:
    """Every tensor of the example twice, for norms that want more than one value."""
    return each(example, lambda value: torch.cat([value, value]) if value.ndim else value)


def each(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``example``, a tuple or a dict, with all its tensors changed."""

    def convert(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return {name: convert(value) for name, value in example.items()}
    return tuple(convert(value) for value in example)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a model's output: any nesting of sequences, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = list(vars(value).values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for item in value for t in tensors(item)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return []
    raise ModelError(
        f"the model returns a {type(value).__name__}, in which tensors cannot be followed; "
        "return a tensor, tuple, list, dict or dataclass"
    )
