"""An exponential moving average of a model's weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Ema", "tensors_of"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, as they are, not copied."""
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


class Ema:
    """The average; early steps count for more, as if it had been started late."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: t.detach().clone() for name, t in tensors_of(model).items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` (from 0)."""
        live = tensors_of(model)
        names = [name for name, tensor in live.items() if tensor.is_floating_point()]
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([self.values[n] for n in names], [live[n].detach() for n in names], step)
        for name, tensor in live.items():
            if not tensor.is_floating_point():
                self.values[name].copy_(tensor)

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """What is exactly zero in the model becomes zero in the average.

        A rule holds pruned weights at zero; an average that remembers them would undo the pruning.
        """
        for name, tensor in tensors_of(model).items():
            if tensor.is_floating_point():
                self.values[name].masked_fill_(tensor == 0, 0)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights in ``model`` inside the block, its own again after it."""
        own = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
        put(model, self.values)
        try:
            yield
        finally:
            put(model, own)


@torch.no_grad()
def put(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy ``values`` into the model's own tensors, in place."""
    for name, tensor in tensors_of(model).items():
        tensor.copy_(values[name])
