"""What training steps cost, in steps of the dense network, as the literature counts FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from prunekit.networks.weight_layers import layer_macs
from prunekit.support.progress import say
from prunekit.train.method_state import Forms, Plain

WORK_FORMS: Forms = {"done": Plain("work", float)}
"""How what was done is saved."""


class Work:
    """Adds up steps: forward and backward are three forwards of the weights that are there.

    Counted are linear and convolutional layers, dense ones as such. Without an ``example`` input
    nothing is known.
    """

    def __init__(
        self, model: nn.Module, names: list[str], weights: Sequence[Tensor], example: Any
    ) -> None:
        macs = {} if example is None else layer_macs(model, example, names)
        self.whole = sum(macs.values())
        if idle := [name for name in names if macs and not macs[name] and not _known(model, name)]:
            more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
            say(f"note: no FLOPs of {idle[0]}{more} are counted: not called on the example input")
        self.done = 0.0
        self._layers = [
            (macs.get(name, 0), weight.numel()) for name, weight in zip(names, weights, strict=True)
        ]

    def add(self, active: list[int], *, dense_gradient: bool = False) -> None:
        """A step with so many weights in each sparse layer.

        Where it computes the gradients of all weights, a third of it is dense.
        """
        if not self.whole:
            return
        saved = sum(
            macs * (1 - n / size) for n, (macs, size) in zip(active, self._layers, strict=True)
        )
        share = 1 - saved / self.whole
        self.done += (2 * share + 1) / 3 if dense_gradient else share


def _known(model: nn.Module, name: str) -> bool:
    """Whether it was said already that no FLOPs of it are counted."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
