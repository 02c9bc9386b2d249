"""Which weights of a model are made sparse, and what its layers cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunekit.core.density import WeightShape
from prunekit.networks.running import call, each, evaluating, refusing
from prunekit.support.errors import ModelError, UsageError
from prunekit.support.parsing import matching
from prunekit.support.progress import say

LAYER_TYPES = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that multiply by a weight, transposed convolutions and those of later kinds too."""
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Those of them that are made sparse: a weight is (outputs, inputs, kernel ...)."""
_PRODUCTS = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
    *("matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "einsum"),
}
_BY_WEIGHT = {"linear", "conv1d", "conv2d", "conv3d"}
"""Those whose second input is a weight (outputs, inputs, kernel ...)."""
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


def find_layers(
    model: nn.Module, dense: str | Sequence[str] | None = (FIRST,), example: Any = None
) -> list[Layer]:
    """All linear and convolutional layers, those that ``dense`` names marked.

    ``dense`` has names of layers or of modules that hold some, patterns such as ``layer1.*``, or
    ``first``: the first that runs on ``example``, without one the first of the model's modules.
    Layers whose weights are not trained stay dense as well; one whose weight is computed has to be
    named and is left out. Raises UsageError for a name that matches nothing.
    """
    if not isinstance(dense, str | Sequence | None):
        raise UsageError(f"`dense` must be names of layers, not {dense!r}")
    wanted = (dense,) if isinstance(dense, str) else tuple(dense or ())
    weights = _weights(model)
    if not weights:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer")
    names = [name for known, _ in weights for name in known]
    named = matching(names, [pattern for pattern in wanted if pattern != FIRST], "`dense`")
    if FIRST in wanted:
        macs = {} if example is None else layer_macs(model, example)  # those that run come first
        named = named | {next(iter(macs), names[0])}
    layers = []
    for known, weight in weights:
        kept = not named.isdisjoint(known)
        if isinstance(weight, nn.Parameter):
            layers.append(Layer(known[0], weight, dense=kept or not weight.requires_grad))
        elif not kept:
            raise UsageError(
                f"{known[0]}.weight is computed by a parametrisation, which cannot be masked; keep "
                f"it dense (--dense {known[0]}), or remove it first ({weight})"
            )
    if not any(layer.weight.requires_grad for layer in layers):
        raise UsageError(
            f"no weight of {type(model).__name__} is trained (`requires_grad` is off everywhere)"
        )
    if all(layer.dense for layer in layers):
        raise UsageError(f"every layer of {type(model).__name__} is dense; name fewer in `dense`")
    _tell_of_others(model, layers)
    return layers


def _weights(model: nn.Module) -> list[tuple[list[str], nn.Parameter | str]]:
    """Every weight with the names of all layers that have it; of a computed one how to undo it."""
    by_identity: dict[int, tuple[list[str], nn.Parameter | str]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, KINDS) or not isinstance(module.weight, Tensor):
            continue
        weight: nn.Parameter | str | None = module._parameters.get("weight")
        if isinstance(weight, UninitializedParameter):
            raise ModelError(f"{name}.weight has no shape yet; run the model on one input first")
        if weight is None:
            known = is_parametrized(module, "weight")
            undo = "parametrize.remove_parametrizations" if known else "remove_weight_norm"
            weight = f"torch.nn.utils.{undo}"
        by_identity.setdefault(_identity(module), ([], weight))[0].append(name)
    return list(by_identity.values())


def _identity(module: nn.Module) -> int:
    """The same for layers that share a weight."""
    weight = module._parameters.get("weight")
    return id(module if weight is None else weight)


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

    Layers that share a weight count under the first one's name, those that run first, in their
    order. Products that read a layer's weight without calling it (``F.linear(x, layer.weight)``)
    count for it. ``example`` is a tensor, a tuple or a dict of inputs. A layer that does not run
    counts none. Of the ``masked`` ones ModelError names the first that does not multiply by its
    weight itself, but by something computed from it.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, KINDS)}
    first: dict[int, str] = {}
    for name, module in modules.items():
        first.setdefault(_identity(module), name)
    macs_of: dict[str, int] = {}
    layer_at = {
        weight.data_ptr(): name
        for name in first.values()
        if (weight := modules[name]._parameters.get("weight")) is not None
    }
    read = _Read(layer_at)
    device = next(model.parameters()).device
    inputs = example if isinstance(example, tuple | dict) else (example,)

    def enter(module: nn.Module, _inputs: Any) -> None:
        read.inside.append(first[_identity(module)])
        read.order.append(read.inside[-1])

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        name = read.inside.pop()
        shape = cast(Tensor, module.weight).shape
        macs_of[name] = macs_of.get(name, 0) + output.numel() * math.prod(shape[1:])

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for module in modules.values():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(count).remove)
        stack.enter_context(refusing(model, example))
        stack.enter_context(read)
        call(model, each(inputs, lambda value: value.to(device)))
    for name, module in modules.items():
        sparse = name in masked and macs_of.get(name, 0) > 0
        if sparse and module.get_parameter("weight").data_ptr() not in read.addresses:
            raise ModelError(
                f"{name} ({type(module).__name__}) computes with values worked out from its "
                f"weight, where zeros do not stay zero; keep it dense (--dense {name})"
            )
    for name, macs in read.macs.items():
        macs_of[name] = macs_of.get(name, 0) + macs
    ran = sorted(macs_of, key=read.order.index)
    return {name: macs_of[name] for name in ran} | {
        n: 0 for n in first.values() if n not in macs_of
    }


class _Read(TorchFunctionMode):
    """Takes down which tensors products read as they are, and what those outside of layers cost.

    ``layer_at`` are the layers' names by the addresses of their weights.
    """

    def __init__(self, layer_at: dict[int, str]) -> None:
        super().__init__()
        self.layer_at = layer_at
        self.addresses: set[int] = set()
        self.inside: list[str] = []
        """Layers that are running."""
        self.order: list[str] = []
        self.macs: dict[str, int] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            values = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
            self.addresses |= {value.data_ptr() for value in values}
            if name in _BY_WEIGHT:
                self._count(kwargs.get("weight", args[1] if len(args) > 1 else None), result)
        return result

    def _count(self, weight: Any, result: Any) -> None:
        layer = self.layer_at.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
        if layer is None or layer in self.inside or weight.ndim < 2:
            return
        macs = result.numel() * math.prod(weight.shape[1:])
        self.macs[layer] = self.macs.get(layer, 0) + macs
        self.order.append(layer)
