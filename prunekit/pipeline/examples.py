"""Inputs that a network is run on: made as a recipe says, or by the user's own function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunekit.core.inputs import InputSpec, format_inputs, parse_inputs
from prunekit.networks.running import tensors
from prunekit.pipeline.recipes.base import TrainingRecipe
from prunekit.support.errors import UsageError
from prunekit.support.user_code import call_factory

Example = Any
"""A tensor, a tuple of them, or a dictionary by the names of the forward's arguments."""


def example_input(text: str) -> Example:
    """Seeded noise as ``text`` says; see :func:`prunekit.core.inputs.parse_inputs`."""
    generator = torch.Generator().manual_seed(0)
    specs = parse_inputs(text)
    made = [_tensor(spec, generator) for spec in specs]
    if specs[0].name is not None:
        return {str(spec.name): tensor for spec, tensor in zip(specs, made, strict=True)}
    return made[0] if len(made) == 1 else tuple(made)


def recipe_example(recipe: TrainingRecipe) -> Example:
    """The input that a recipe is for, the same every time."""
    if recipe.example is None:
        return example_input(recipe.input)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        made, _ = call_factory(recipe.example, {"batch": 1}, UsageError)
    finally:
        torch.set_rng_state(state)
    made = tuple(made) if isinstance(made, list) else made
    if not isinstance(made, Tensor | tuple | dict) or not tensors(made):
        raise UsageError(
            f"{recipe.example} returned {type(made).__name__}; an example is a tensor, a tuple of "
            "them, or a dictionary by the names of the forward's arguments"
        )
    return made


def described(example: Example) -> str:
    """An example as ``--input`` has it, so that one like it can be made without its function.

    Empty where the shape alone says it.
    """
    if isinstance(example, Tensor) and example.is_floating_point():
        return ""
    named = example.items() if isinstance(example, dict) else [(None, t) for t in _several(example)]
    return format_inputs([_spec(name, t) for name, t in named if isinstance(t, Tensor)])


def first_shape(recipe: TrainingRecipe) -> tuple[int, ...]:
    """The shape of the first tensor."""
    if recipe.example is None:
        return recipe.shape
    return tuple(tensors(recipe_example(recipe))[0].shape)


def in_channels(recipe: TrainingRecipe) -> int | None:
    """How many channels a factory is asked for; None where the first input has none."""
    first = tensors(recipe_example(recipe))[0]
    return first.shape[1] if first.ndim > 1 and first.is_floating_point() else None


def _several(example: Example) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


def _spec(name: str | None, tensor: Tensor) -> InputSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    whole = not tensor.is_floating_point() and dtype != "bool"
    below = float(tensor.max()) + 1 if whole and tensor.numel() else None
    return InputSpec(tuple(tensor.shape), name, dtype, below if below and below > 0 else None)


def _tensor(spec: InputSpec, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    if spec.value is not None:
        return torch.full(spec.shape, spec.value).to(dtype)
    if spec.is_floating:
        if spec.below is None:
            return torch.randn(spec.shape, generator=generator).to(dtype)
        return (spec.below * torch.rand(spec.shape, generator=generator)).to(dtype)
    below = max(1, int(spec.below if spec.below is not None else 2))
    return torch.randint(below, spec.shape, generator=generator).to(dtype)
