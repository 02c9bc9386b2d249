"""What channels are on average, by the network's own norms: no data is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.networks.products import Product, Watch
from prunekit.networks.running import call, evaluating

NODES = 513
"""Points that a mean over a Gaussian is summed at, from minus to plus :data:`REACH`."""
REACH = 6.0
_CLAMPED = {
    **dict.fromkeys(("relu", "relu_"), (0.0, math.inf)),
    "relu6": (0.0, 6.0),
}
_POINTWISE = {
    *("silu", "silu_", "hardswish", "hardswish_", "gelu", "sigmoid", "hardsigmoid", "tanh", "elu"),
    *("leaky_relu", "leaky_relu_", "elu_", "mish", "softplus", "sigmoid_", "tanh_"),
}
_KEEPING = {
    *("dropout", "dropout2d", "dropout3d", "identity", "contiguous", "clone"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
"""What leaves every channel's mean as it is; a pool over zeros around an image nearly does."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of a tensor's channels (axis 1): their mean, in float64.

    ``deviation`` is known too where they may be taken for Gaussian: behind a norm, and behind a sum
    with what an activation gave.
    """

    mean: Tensor
    deviation: Tensor | None = None


class Beliefs(Watch):
    """Follows means through one run, whose values do not matter; gives those that layers read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.read: dict[str, Tensor] = {}
        """The mean of every channel that a layer reads, where it is known."""
        self._known: dict[int, tuple[Belief, Tensor]] = {}

    def product(self, product: Product, compute: Any) -> Any:
        """A layer, which reads beliefs and gives none."""
        belief = self._of(product.input)
        width = product.weight.shape[1] * product.groups
        if belief is not None and len(belief.mean) == width:
            self.read[product.layer] = belief.mean
        return compute()

    def other(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Any other function: what it makes of a mean, where that is known."""
        belief = self._after(name, func, args, kwargs)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor):
            if belief is None:
                self._known.pop(id(output), None)
            else:
                self._known[id(output)] = (belief, output)  # kept: identities come twice else
        return output

    def _of(self, value: Any) -> Belief | None:
        entry = self._known.get(id(value))
        return None if entry is None else entry[0]

    def _after(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Belief | None:
        if name == "batch_norm":
            return _normed(*args, **kwargs)
        if name in ("add", "add_", "__add__", "__iadd__") and len(args) == 2 and not kwargs:
            return _sum(*map(self._of, args))
        if name in ("cat", "concat") and (kwargs.get("dim") == 1 or (*args, 0)[1] == 1):
            parts = [self._of(part) for part in (args[0] if args else kwargs["tensors"])]
            known = [part.mean for part in parts if part is not None]
            return Belief(torch.cat(known)) if len(known) == len(parts) else None
        belief = self._of(args[0]) if args else None
        if belief is None:
            return None
        if name in _KEEPING:
            return Belief(belief.mean)
        if name in ("flatten", "view", "reshape", "squeeze", "mean"):
            return _flattened(name, belief, args, kwargs)
        if name in _CLAMPED or name == "hardtanh":
            bounds = _CLAMPED.get(name) or _bounds(*args[1:], **kwargs)
            return _clamped(belief, *bounds)
        return _expected(belief, func, args, kwargs) if name in _POINTWISE else None


def layer_means(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """The mean of every channel that a layer reads, where norms tell; ``example`` gives shapes."""
    beliefs = Beliefs(model)
    with evaluating(model), torch.no_grad(), beliefs:
        call(model, example)
    return beliefs.read


def _normed(
    input: Tensor,  # noqa: A002, ARG001 - as torch calls it
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Belief | None:
    if running_mean is None or running_var is None:
        return None
    like = running_mean.double()
    mean = torch.zeros_like(like) if bias is None else bias.detach().double()
    deviation = torch.ones_like(like) if weight is None else weight.detach().double().abs()
    return Belief(mean, deviation)


def _sum(one: Belief | None, other: Belief | None) -> Belief | None:
    """Of two tensors: independent, as far as the deviation goes."""
    if one is None or other is None or len(one.mean) != len(other.mean):
        return None
    deviation = None
    if one.deviation is not None and other.deviation is not None:
        deviation = torch.hypot(one.deviation, other.deviation)
    return Belief(one.mean + other.mean, deviation)


def _flattened(name: str, belief: Belief, args: Any, kwargs: dict[str, Any]) -> Belief | None:
    """A map of one position made flat, or averaged over its positions."""
    if name == "mean":
        axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
        axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
        ndim = args[0].ndim
        inside = axes and all(axis % ndim >= 2 for axis in axes)
        return Belief(belief.mean) if inside else None
    single = args[0].ndim == 2 or math.prod(args[0].shape[2:]) == 1
    return Belief(belief.mean) if single and args[0].shape[1] == len(belief.mean) else None


def _bounds(min_val: float = -1.0, max_val: float = 1.0, *_: Any, **__: Any) -> tuple[float, float]:
    return min_val, max_val


def _clamped(belief: Belief, low: float, high: float) -> Belief | None:
    """E[clamp(x, low, high)] of a Gaussian, in closed form; the deviation is summed."""
    if belief.deviation is None:
        return None
    mean = low + _above(belief.mean - low, belief.deviation)
    if high < math.inf:
        mean = mean - _above(belief.mean - high, belief.deviation)
    summed = _expected(belief, torch.clamp, (None, low, high), {})
    return Belief(mean, None if summed is None else summed.deviation)


def _above(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[max(x, 0)] of a Gaussian."""
    safe = deviation.clamp(min=1e-30)
    z = mean / safe
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    above = mean * torch.special.ndtr(z) + safe * density
    return torch.where(deviation > 1e-30, above, mean.clamp(min=0))


def _expected(
    belief: Belief, func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]
) -> Belief | None:
    """E[f(x)] of a Gaussian, and f(x)'s deviation: the function itself, summed over a range."""
    if belief.deviation is None:
        return None
    z = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    points = belief.mean[:, None] + belief.deviation[:, None] * z
    values = func(points.clone(), *args[1:], **kwargs)
    mean = (values * density).sum(1) / density.sum()
    square = (values.square() * density).sum(1) / density.sum()
    return Belief(mean, (square - mean.square()).clamp(min=0).sqrt())
