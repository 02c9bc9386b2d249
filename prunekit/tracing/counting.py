"""Products of one forward, counted to the layer whose weight they read, however it is called."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.tracing.calls import flat, operator_name
from prunekit.tracing.dispatch import OperatorMode

_MATRICES = {"mm": 0, "bmm": 0, "matmul": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1}
"""Products of matrices, and which argument the left one is."""
_CONVOLUTIONS = ("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution")
_ATTENTION = "scaled_dot_product"

Sizes = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape of a call's input, shape of its output."""


class ProductCounter(OperatorMode):
    """Finds products with a layer's weight that the layer itself does not make.

    Such as ``F.linear(x, layer.weight)``, an ``einsum``, or a convolution with a weight that was
    worked out from the layer's own.
    """

    supports_higher_order_operators = True  # what they run is refused later, with a better reason

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        """Multiply-accumulates of layers of matrices, for the whole batch."""
        self.convolved: dict[str, list[Sizes]] = {}
        """Calls of convolutions."""
        self.activations = 0
        """Multiply-accumulates between activations, as in attention, for the whole batch."""
        self._running: list[str] = []
        self._layer_of: Any = WeakTensorKeyDictionary()
        self._hooks: list[Any] = []
        for name, module in reversed(list(model.named_modules())):  # of a shared one, the first
            weight = module._parameters.get("weight") if isinstance(module, LAYER_TYPES) else None
            if weight is None:
                continue
            self._layer_of[weight] = name
            self._hooks.append(module.register_forward_pre_hook(self._entered))
            self._hooks.append(module.register_forward_hook(self._left, always_call=True))

    def _entered(self, module: nn.Module, _: Any) -> None:
        self._running.append(type(module).__name__)

    def _left(self, *_: Any) -> None:
        self._running.pop()

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._running and not isinstance(func, HigherOrderOperator):
            self._note(operator_name(func), args, flat((args, kwargs or {})), flat(out))
        return out

    def _note(self, name: str, args: Any, given: list[Tensor], made: list[Tensor]) -> None:
        layers = [self._layer_of.get(tensor) for tensor in given]
        layer = next((one for one in layers if one is not None), None)
        if layer is not None and all(one == layer for one in layers):
            for tensor in made:  # the weight itself, turned or worked out anew
                self._layer_of[tensor] = layer
        elif name in _CONVOLUTIONS and layer is not None:
            sizes = tuple(args[0].shape), tuple(made[0].shape)
            self.convolved.setdefault(layer, []).append(sizes)
        elif name in _MATRICES:
            macs = made[0].numel() * args[_MATRICES[name]].shape[-1]
            if layer is None:
                self.activations += macs
            else:
                self.macs[layer] = self.macs.get(layer, 0) + macs
        elif _ATTENTION in name and len(given) > 2:
            query, key, value = given[:3]
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            self.activations += pairs * (query.shape[-1] + value.shape[-1])


@contextmanager
def counting(model: nn.Module) -> Iterator[ProductCounter]:
    """A counter of what runs in the block."""
    counter = ProductCounter(model)
    try:
        with counter:
            yield counter
    finally:
        counter.close()


def called_as_functions(
    model: nn.Module, counter: ProductCounter, batch: int
) -> dict[str, list[Sizes]]:
    """Layers that are used without being called, with shapes that have the same products."""
    shapes = {name: [*calls] for name, calls in counter.convolved.items()}
    for name, macs in counter.macs.items():
        rows, columns = model.get_submodule(name).get_parameter("weight").shape[:2]
        positions, rest = divmod(macs, rows * columns * batch)
        if positions and not rest:
            middle = (positions,) if positions > 1 else ()
            shapes[name] = [((batch, *middle, columns), (batch, *middle, rows))]
    return shapes


def per_sample(calls: list[Sizes], batch: int, *, matrices: bool) -> list[Sizes]:
    """Calls as they are for each sample of the batch.

    Windows, frames or images that were joined to a longer batch are positions of a matrix product,
    and further calls of a convolution.
    """
    divided: list[Sizes] = []
    for before, after in calls:
        if matrices:
            positions, rest = divmod(math.prod(after[:-1]), batch)
            if before[0] == batch or rest or before[:-1] != after[:-1]:
                divided.append((before, after))
            else:
                middle = (positions,) if positions > 1 else ()
                divided.append(((batch, *middle, before[-1]), (batch, *middle, after[-1])))
        else:
            times, rest = divmod(before[0], batch)
            divided += [(before, after)] * (1 if rest or not times else times)
    return divided
