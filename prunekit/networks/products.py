"""Products of a network, watched while it runs: what every layer reads, and who reads it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = {"linear", "conv1d", "conv2d", "conv3d"}
"""Functions whose second input is a weight (outputs, inputs, kernel ...)."""
Sizes = int | str | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """One call of a layer: what it reads, by which weight, and how its window moves."""

    layer: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the window; none of a linear layer."""
        return tuple(self.weight.shape[2:])

    @property
    def features(self) -> int:
        """How many values one output of one group is made from."""
        return math.prod(self.weight.shape[1:])

    @property
    def is_linear(self) -> bool:
        """Whether it reads the last axis, at every position of the others."""
        return self.weight.ndim == 2

    def rows_of(self, output: Tensor) -> Tensor:
        """Its output with one position after another, batch outermost: (positions, outputs)."""
        if self.is_linear:
            return output.reshape(-1, output.shape[-1])
        if output.ndim == self.weight.ndim - 1:  # a single sample
            output = output[None]
        return output.movedim(1, -1).reshape(-1, output.shape[1])

    @property
    def maps(self) -> Tensor:
        """A convolution's input with what it is padded by, a single sample as a batch."""
        batch = self.input if self.input.ndim == self.weight.ndim else self.input[None]
        return F.pad(batch, [side for pair in reversed(self.padding) for side in pair])

    def outputs(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Positions that the window takes along each axis of padded maps of these sizes."""
        axes = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - hole * (k - 1) - 1) // step + 1 for size, k, step, hole in axes)

    @property
    def positions(self) -> int:
        """How often every weight is used in this call."""
        if self.is_linear:
            return self.input.numel() // max(1, self.input.shape[-1])
        batch = self.input.shape[0] if self.input.ndim == self.weight.ndim else 1
        inside = self.input.shape[self.input.ndim - len(self.kernel) :]
        sizes = (n + sum(pair) for n, pair in zip(inside, self.padding, strict=True))
        return batch * math.prod(self.outputs(tuple(sizes)))

    def patches(self, positions: Tensor) -> Tensor:
        """What it reads at some ``positions``: (positions, groups, features)."""
        if self.is_linear:
            return self.input.reshape(-1, self.input.shape[-1])[positions][:, None]
        maps = self.maps
        sizes = tuple(maps.shape[2:])
        outputs = self.outputs(sizes)
        images, inside = positions // math.prod(outputs), positions % math.prod(outputs)
        starts = np.unravel_index(inside.numpy(), outputs)
        flat = np.zeros((len(positions), math.prod(self.kernel)), dtype=np.int64)
        windows = np.unravel_index(np.arange(flat.shape[1]), self.kernel)
        for axis, (start, window) in enumerate(zip(starts, windows, strict=True)):
            at = start[:, None] * self.stride[axis] + window * self.dilation[axis]
            flat += at * math.prod(sizes[axis + 1 :])
        read = maps.flatten(2)[images[:, None], :, torch.from_numpy(flat)]  # position, window, in
        return read.transpose(1, 2).reshape(len(positions), self.groups, -1)


class Watch(TorchFunctionMode):
    """While it is entered, every product of ``model`` goes through :meth:`product`.

    Layers are found by their weights, so that those called through functions are too. A weight of
    several layers is known under its first name; weights that are computed are not found.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        for name, module in model.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None:
                self.names.setdefault(id(weight), name)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every function of torch, products among them."""
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in PRODUCTS:
            return self.other(name, func, args, kwargs)
        product = (_linear if name == "linear" else _convolution)(*args, **kwargs)
        layer = self.names.get(id(product.weight))
        if layer is None:
            return self.other(name, func, args, kwargs)
        named = Product(layer, **{k: v for k, v in vars(product).items() if k != "layer"})
        return self.product(named, _Again(func, args, kwargs))

    def product(self, product: Product, compute: _Again) -> Any:
        """A layer is called; gives what it gives."""
        del product
        return compute()

    def other(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Any other function."""
        del name
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Again:
    """A call that can be made, with weights that may have changed since."""

    func: Any
    args: Any
    kwargs: dict[str, Any]

    def __call__(self) -> Tensor:
        output: Tensor = self.func(*self.args, **self.kwargs)
        return output


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product:  # noqa: A002
    return Product("", input, weight, bias)


def _convolution(
    input: Tensor,  # noqa: A002 - as torch calls it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Product:
    dims = weight.ndim - 2
    holes = _each(dilation, dims)
    if padding == "same":
        spans = [hole * (k - 1) for hole, k in zip(holes, weight.shape[2:], strict=True)]
        sides = tuple((span // 2, span - span // 2) for span in spans)
    else:
        sides = tuple((p, p) for p in _each(0 if padding == "valid" else padding, dims))
    return Product("", input, weight, bias, _each(stride, dims), sides, holes, groups)


def _each(sizes: Any, dims: int) -> tuple[int, ...]:
    values = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
    return tuple(itertools.islice(itertools.cycle(int(v) for v in values), dims))


class Survey(Watch):
    """One run of a network: its layers in order, how often each is called, and their norms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: dict[str, int] = {}
        self.bytes = 0
        """Of the largest input and output of a layer together."""
        self._norms = {
            id(module.running_mean): name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            and module.running_mean is not None
        }
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # kept, so that no identity comes twice
        self._readers: dict[str, list[str]] = {}

    def product(self, product: Product, compute: _Again) -> Any:
        """Count it."""
        self._note("", compute.args, compute.kwargs)
        output = compute()
        layer = product.layer
        self.calls[layer] = self.calls.get(layer, 0) + 1
        self._outputs[id(output)] = (layer, output)
        sizes = (t.numel() * t.element_size() for t in (product.input, output))
        self.bytes = max(self.bytes, sum(sizes))
        return output

    def other(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Who reads what a layer gave."""
        norm = ""
        if name == "batch_norm":
            mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
            norm = self._norms.get(id(mean), "")
        if not name.startswith("__get") and name not in ("dim", "size"):
            self._note(norm, args, kwargs)
        return func(*args, **kwargs)

    def norm_after(self, layer: str) -> str | None:
        """The norm with running statistics that alone reads what ``layer`` gives, if one does."""
        readers = self._readers.get(layer, [])
        alone = len(readers) == 1 and readers[0] and self.calls[layer] == 1
        return readers[0] if alone else None

    def _note(self, norm: str, args: Any, kwargs: dict[str, Any]) -> None:
        for value in _tensors((args, kwargs)):
            if id(value) in self._outputs:
                self._readers.setdefault(self._outputs[id(value)][0], []).append(norm)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
