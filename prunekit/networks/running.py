"""Running modules: their mode, and input that they refuse."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.support.errors import ModelError, first_line

_HIGHER_ORDER = re.compile(r"Higher Order Operator: (?:torch\.)?(?P<name>\w+)")
"""As PyTorch names one that its own compiler could not take in."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own training flag is restored after it."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def refusing(model: nn.Module, example: Any) -> Iterator[None]:
    """What running ``model`` on ``example`` raises inside the block becomes one ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if (operator := _HIGHER_ORDER.search(str(error))) is not None:
            raise not_followed("the model", operator["name"]) from error
        sizes = ", ".join("x".join(map(str, value.shape)) for value in tensors(example))
        cause = first_line(error, "no message")
        raise ModelError(
            f"{type(model).__name__} refuses input {sizes}: {type(error).__name__}: {cause}"
            f"{_remedy(model, example, error)}"
        ) from error


def not_followed(where: str, operator: str) -> ModelError:
    """Of operators that run functions, such as torch's ``cond``: which way they go is not known."""
    return ModelError(
        f"{where} uses torch's {operator}, which cannot be followed; "
        "write it with plain Python or torch.where"
    )


def _remedy(model: nn.Module, example: Any, error: Exception) -> str:
    """What to give instead, where that is plain to see."""
    forward = inspect.signature(model.forward)
    given = example if isinstance(example, dict | tuple) else (example,)
    names = [name for name, part in forward.parameters.items() if part.default is part.empty]
    if isinstance(error, TypeError) and len(names) != len(given):
        wanted = ",".join(f"{name}=SHAPE" for name in names)
        return f"; its forward takes {', '.join(names)}: --input {wanted}"
    if "Long" in str(error) and all(t.is_floating_point() for t in tensors(example)):
        sizes = "x".join(map(str, tensors(example)[0].shape))
        return f"; for whole numbers, such as token ids: --input {sizes}:int64<100"
    return ""


def call(model: nn.Module, example: Any) -> Any:
    """``model`` on a tuple or dict of inputs, without compiling anything."""
    compiled = any(type(module).__name__ == "OptimizedModule" for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return model(**example) if isinstance(example, dict) else model(*example)


def each(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``example``, a tuple or a dict, with all its tensors changed."""

    def convert(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return {name: convert(value) for name, value in example.items()}
    return tuple(convert(value) for value in example)


def tensors(example: Any) -> list[Tensor]:
    """Those among the inputs: a tensor, a tuple or a dict of them."""
    values = example.values() if isinstance(example, dict) else example
    values = (values,) if isinstance(values, Tensor) else values
    return [value for value in values if isinstance(value, Tensor)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of what ``torch.compile`` made of it."""
    inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else model
