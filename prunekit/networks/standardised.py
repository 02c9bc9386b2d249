"""Convolutions that compute their weight in every forward, as the plain ones they are deployed as.

Such as weight-standardised ones (arXiv 1903.10520) and scaled ones (arXiv 2101.08692).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

_PLAIN: tuple[type[nn.modules.conv._ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = {"conv1d", "conv2d", "conv3d"}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def plain_convolution(module: nn.Module) -> nn.Module | None:
    """The plain convolution that ``module`` is in evaluation, or None where it is not just that.

    It is if its forward is one convolution of its own input by a weight of the same shape which it
    works out from its own tensors: not from its input, and not to imitate a quantised weight.
    """
    base = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    kept = ("_forward_hooks", "_forward_pre_hooks")
    if (
        base is None
        or type(module) is base
        or hasattr(module, "weight_fake_quant")
        or is_parametrized(module)
        or "weight" not in module._parameters
        or any(getattr(module, hooks) for hooks in kept)
    ):
        return None
    calls = [_convolved(module, seed) for seed in (0, 1)]
    if calls[0] is None or calls[1] is None or not calls[0].equals(calls[1]):
        return None
    return _built(module, base, calls[0])


@dataclass(frozen=True)
class _Convolution:
    """What a convolution was called with."""

    weight: Tensor
    bias: Tensor | None
    padding: Any

    def equals(self, other: _Convolution) -> bool:
        """Whether it was the same by value."""
        if self.bias is None or other.bias is None:
            same_bias = self.bias is other.bias
        else:
            same_bias = torch.equal(self.bias, other.bias)
        return torch.equal(self.weight, other.weight) and same_bias


class _Calls(TorchFunctionMode):
    """Takes down the arguments of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[dict[str, Any]] = []
        self.results: list[Any] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _FUNCTIONS:
            named = dict(zip(_ARGUMENTS, args, strict=False))
            self.arguments.append({**named, **(kwargs or {})})
            self.results.append(result)
        return result


@torch.no_grad()
def _convolved(module: Any, seed: int) -> _Convolution | None:
    """The one convolution that ``module`` makes of an input drawn from ``seed``."""
    sizes = (
        2 * dilation * (kernel - 1) + 3
        for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, module.in_channels, *sizes, generator=generator)
    x = drawn.to(module.weight.device, module.weight.dtype)
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    training = module.training
    module.eval()
    try:
        with _Calls() as calls:
            out = module(x)
    except Exception:  # the module's own code may raise anything
        return None
    finally:
        module.train(training)
    changed = any(not torch.equal(before[name], b) for name, b in module.named_buffers())
    if changed or len(calls.results) != 1 or calls.results[0] is not out:
        return None
    given = calls.arguments[0]
    weight, groups = given["weight"], given.get("groups", 1)
    same = given["input"] is x and groups == module.groups and weight.shape == module.weight.shape
    stepped = all(
        _each(given.get(name, 1), len(module.kernel_size)) == tuple(getattr(module, name))
        for name in ("stride", "dilation")
    )
    if not same or not stepped or weight is module.weight:
        return None
    return _Convolution(weight, given.get("bias"), given.get("padding", 0))


def _each(number: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One number for every axis."""
    return (number,) * axes if isinstance(number, int) else tuple(number)


@torch.no_grad()
def _built(module: Any, kind: type[Any], call: _Convolution) -> nn.Module:
    """A plain convolution with the weight that was computed."""
    padding = call.padding
    if not isinstance(padding, str):
        padding = _each(padding, len(module.kernel_size))
    plain: nn.Module = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=call.bias is not None,
        device="meta",
    )
    for name, value in (("weight", call.weight), ("bias", call.bias)):
        if value is not None:
            own = module._parameters.get(name)
            trained = bool((module.weight if own is None else own).requires_grad)
            setattr(plain, name, nn.Parameter(value.detach().clone(), requires_grad=trained))
    return plain.train(module.training)
