"""What an export takes: a model ready for it, and its inputs by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.networks.running import refusing
from prunekit.networks.slimming import named_tensors
from prunekit.support.errors import ModelError, UsageError


def prepared(
    model: nn.Module, example: Any
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A copy to export, its inputs by name, and the same at batch 2."""
    if any(tensor.is_meta for _, tensor in named_tensors(model)):
        raise ModelError(f"{type(model).__name__} has no values (device meta); load its weights")
    working = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    inputs = named_inputs(example)
    for name, value in inputs.items():
        if not value.ndim:
            raise UsageError(f"input {name} is a single number; give it the batch's dimension")
    if {p.dtype for p in working.parameters()} & {torch.float16, torch.bfloat16}:
        working = working.float()  # files in less than fp32 are made from those
        inputs = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    pair = {name: torch.cat([value, value])[:2] for name, value in inputs.items()}
    # a model may remember the batch that it saw last
    with torch.no_grad(), refusing(working, inputs):
        working(**inputs) if isinstance(example, dict) else working(*inputs.values())
    return working, inputs, pair


def bound(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """``model`` with all inputs that are no tensors bound to it, and the example without them.

    A flag or a number among them decides what is computed, and is no input of a file. What is
    returned takes the tensors by name or in the example's order.
    """
    if isinstance(example, Tensor):
        return model, example
    if not isinstance(example, tuple | dict):
        raise UsageError(
            f"`example` must be a tensor, a tuple or a dict of inputs, not {type(example).__name__}"
        )
    forward = inspect.signature(model.forward)
    if isinstance(example, dict):
        given, in_order = example, [*example] == [*forward.parameters][: len(example)]
        if in_order and all(isinstance(value, Tensor) for value in given.values()):
            return model, example
    else:
        if all(isinstance(value, Tensor) for value in example):
            return model, _by_name(model, forward, example)
        with refusing(model, example):
            given = dict(forward.bind(*example).arguments)
    kinds = {name: part.kind for name, part in forward.parameters.items()}
    for name, value in given.items():
        if isinstance(value, Tensor):
            continue
        tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
        if tensors or kinds.get(name) == inspect.Parameter.VAR_POSITIONAL:
            raise UsageError(
                f"input {name} of {type(model).__name__} holds several; give tensors by themselves"
            )
    fixed = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    inputs = {name: value for name, value in given.items() if name not in fixed}
    working = copy.deepcopy(model)
    working.forward = _Bound(working.forward, tuple(inputs), fixed)
    return working, inputs


def _by_name(
    model: nn.Module, forward: inspect.Signature, example: tuple[Tensor, ...]
) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """Several inputs by the names that the forward has for them, where it has."""
    if len(example) < 2:
        return example
    with refusing(model, example):
        given = forward.bind(*example).arguments
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    kinds = {forward.parameters[name].kind for name in given}
    return dict(given) if kinds == named else example


class _Bound:
    """A model's forward with some inputs given; the others by ``names`` or in their order."""

    def __init__(
        self, forward: Callable[..., Any], names: tuple[str, ...], fixed: dict[str, Any]
    ) -> None:
        self.forward, self.names, self.fixed = forward, names, fixed
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self.forward(**dict(zip(self.names, values, strict=False)), **named, **self.fixed)


def output_names(model: nn.Module, inputs: dict[str, Tensor], *, is_dict: bool) -> list[str] | None:
    """The names of the model's outputs, where it gives a dictionary of tensors; else None."""
    with torch.no_grad():
        outputs = model(**inputs) if is_dict else model(*inputs.values())
    if not isinstance(outputs, Mapping) or not outputs:
        return None
    names = [str(name) for name in outputs]
    plain = all(isinstance(value, Tensor) for value in outputs.values())
    return names if plain and not {*names} & {*inputs} else None


def named_inputs(example: Any) -> dict[str, Tensor]:
    """The example's tensors by the names of the forward's arguments."""
    if isinstance(example, dict):
        return {key: value.detach().cpu() for key, value in example.items()}
    values = example if isinstance(example, tuple) else (example,)
    names = ["input"] if len(values) == 1 else [f"input{i}" for i in range(len(values))]
    return {name: value.detach().cpu() for name, value in zip(names, values, strict=True)}
