"""Which weights of a model are made sparse, and what its layers cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunekit.density import WeightShape
from prunekit.errors import ModelError, UsageError
from prunekit.modes import evaluating
from prunekit.progress import say
from prunekit.reading import matching

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCTS = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
    *("matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "einsum"),
}
FIRST = "first"
"""Stands for the first layer among the names of dense ones."""


@dataclass(frozen=True)
class Layer:
    """A layer with a weight (outputs, inputs, kernel ...), a shared one under its first name."""

    name: str
    weight: nn.Parameter
    dense: bool

    @property
    def shape(self) -> WeightShape:
        """Its name and its weight's shape."""
        return WeightShape(self.name, tuple(self.weight.shape))


def find_layers(model: nn.Module, dense: str | Sequence[str] | None = (FIRST,)) -> list[Layer]:
    """All linear and convolutional layers, those that ``dense`` names marked.

    ``dense`` has names of layers or of modules that hold some, patterns such as ``layer1.*``, or
    ``first``. Layers whose weights are not trained stay dense as well. Raises UsageError for a name
    that matches nothing.
    """
    wanted = (dense,) if isinstance(dense, str) else tuple(dense or ())
    found = _weights(model)
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer")
    names = [name for known, _ in found for name in known]
    named = matching(names, [pattern for pattern in wanted if pattern != FIRST], "`dense`")
    layers = [
        Layer(
            known[0],
            weight,
            dense=not weight.requires_grad
            or (FIRST in wanted and known[0] == names[0])
            or not named.isdisjoint(known),
        )
        for known, weight in found
    ]
    if not any(weight.requires_grad for _, weight in found):
        raise UsageError(
            f"no weight of {type(model).__name__} is trained (`requires_grad` is off everywhere)"
        )
    if all(layer.dense for layer in layers):
        raise UsageError(f"every layer of {type(model).__name__} is dense; name fewer in `dense`")
    _tell_of_others(model, layers)
    return layers


def _weights(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every weight with the names of all layers that have it."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, KINDS) or not isinstance(module.weight, Tensor):
            continue
        weight = module.weight
        if isinstance(weight, UninitializedParameter):
            raise ModelError(f"{name}.weight has no shape yet; run the model on one input first")
        if not isinstance(weight, nn.Parameter):
            raise UsageError(
                f"{name}.weight is computed by a parametrisation, which cannot be masked; "
                "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        found.setdefault(id(weight), ([], weight))[0].append(name)
    return list(found.values())


def _tell_of_others(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Say which weights a user may expect among the sparse ones, or not."""
    sparse = {id(layer.weight): layer.name for layer in layers if not layer.dense}
    attentions = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            attentions.append(name)
        elif not isinstance(module, KINDS):
            for parameter in module.parameters(recurse=False):
                if other := sparse.get(id(parameter)):
                    say(f"note: {name} has the weight of {other}, and becomes sparse with it")
    if attentions:
        more = f" and {len(attentions) - 1} more" if len(attentions) > 1 else ""
        say(
            f"note: the queries, keys and values of {attentions[0]}{more} stay dense "
            "(nn.MultiheadAttention), and no FLOPs of it are counted"
        )


@torch.no_grad()
def layer_macs(model: nn.Module, example: Any, masked: Collection[str] = ()) -> dict[str, int]:
    """Multiply-accumulates of every linear and convolutional layer, over all calls in a forward.

    Layers that share a weight count under the first one's name. ``example`` is a tensor, a tuple or
    a dict of inputs. A layer that does not run counts none. Of the ``masked`` ones ModelError names
    the first that does not multiply by its weight itself, but by something computed from it.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, KINDS)}
    first: dict[int, str] = {}
    for name, module in modules.items():
        first.setdefault(id(module.weight), name)
    found = dict.fromkeys(first.values(), 0)
    device = next(model.parameters()).device

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        found[first[id(weight)]] += output.numel() * math.prod(weight.shape[1:])

    read = _Read()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for module in modules.values():
            stack.callback(module.register_forward_hook(count).remove)
        stack.enter_context(read)
        if isinstance(example, dict):
            model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in example.items()})
        else:
            inputs = example if isinstance(example, tuple) else (example,)
            model(*(value.to(device) for value in inputs))
    for name, module in modules.items():
        sparse = name in masked and found[name] > 0
        if sparse and module.get_parameter("weight").data_ptr() not in read.addresses:
            raise ModelError(
                f"{name} ({type(module).__name__}) computes with values worked out from its "
                f"weight, where zeros do not stay zero; keep it dense (--dense {name})"
            )
    return found


class _Read(TorchFunctionMode):
    """Takes down which tensors products read as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _PRODUCTS:
            values = tree_leaves((args, kwargs))
            self.addresses |= {v.data_ptr() for v in values if isinstance(v, Tensor)}
        return func(*args, **kwargs)
