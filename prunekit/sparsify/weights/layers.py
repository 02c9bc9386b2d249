"""Which weights of a model are made sparse, and what its layers cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.density import WeightShape
from prunekit.errors import ModelError, UsageError
from prunekit.modes import evaluating

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FIRST = "first"
"""Stands for the first layer among the names of dense ones."""


@dataclass(frozen=True)
class Layer:
    """A layer with a weight (outputs, inputs, kernel ...), shared ones under their first name."""

    name: str
    weight: nn.Parameter
    dense: bool

    @property
    def shape(self) -> WeightShape:
        """Its name and its weight's shape."""
        return WeightShape(self.name, tuple(self.weight.shape))


def find_layers(model: nn.Module, dense: Sequence[str] = (FIRST,)) -> list[Layer]:
    """All linear and convolutional layers, those that ``dense`` names marked.

    ``dense`` has names, patterns such as ``layer1.*``, or ``first``. Layers whose weights are not
    trained stay dense as well. Raises UsageError for a name that matches nothing.
    """
    found = list(_weights(model))
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer")
    names = [name for name, _ in found]
    for pattern in dense:
        if pattern != FIRST and not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise UsageError(f"`dense` names {pattern!r}, which matches no layer; layers: {shown}")
    layers = [
        Layer(
            name,
            weight,
            dense=not weight.requires_grad
            or (FIRST in dense and name == names[0])
            or any(fnmatchcase(name, pattern) for pattern in dense),
        )
        for name, weight in found
    ]
    if all(layer.dense for layer in layers):
        raise UsageError(f"every layer of {type(model).__name__} is dense; name fewer in `dense`")
    return layers


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, KINDS) or not isinstance(module.weight, Tensor):
            continue
        weight = module.weight
        if not isinstance(weight, nn.Parameter):
            raise UsageError(
                f"{name}.weight is computed by a parametrisation, which cannot be masked; "
                "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            yield name, weight


@torch.no_grad()
def layer_macs(model: nn.Module, example: Any) -> dict[str, int]:
    """Multiply-accumulates of every linear and convolutional layer, over all calls in a forward.

    ``example`` is a tensor, a tuple or a dict of inputs. A layer that does not run counts none.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, KINDS)}
    found = dict.fromkeys(modules, 0)
    device = next(model.parameters()).device

    def count(name: str, module: nn.Module, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        found[name] += output.numel() * math.prod(weight.shape[1:])

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in modules.items():
            handle = module.register_forward_hook(
                lambda module, _inputs, output, name=name: count(name, module, output)
            )
            stack.callback(handle.remove)
        if isinstance(example, dict):
            model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in example.items()})
        else:
            inputs = example if isinstance(example, tuple) else (example,)
            model(*(value.to(device) for value in inputs))
    return found
