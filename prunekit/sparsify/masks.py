"""The masks of a sparse training: what keeps inactive weights, and their momentum, at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from prunekit.train.step import scale_gradients_

_KEEP_ZERO = (SGD, Adam, AdamW, RMSprop)
"""Optimizers that leave a weight at zero whose value, gradient and state are zero."""


class Masks:
    """One mask per weight tensor, 1 for active and 0 for inactive, in the weight's own type.

    Gradients of inactive weights are zeroed in one fused product per step. With the usual
    optimizers that is enough: the weight, its decay and its momentum stay exactly zero. With
    others the weights are put back to zero after every step too.
    """

    def __init__(self, weights: Sequence[Tensor], active: list[Tensor]) -> None:
        self.weights: list[Tensor] = [*weights]
        self.active = active
        """Booleans, as decisions are made on them."""
        self._factors = factors(active, self.weights)
        self._counts: list[int] = []

    def set_(self, active: list[Tensor]) -> None:
        """Exchange the structure; weights and gradients are as they were."""
        self.active, self._counts = active, []
        for factor, on in zip(self._factors, active, strict=True):
            factor.copy_(_bytes(on))

    def to_(self) -> None:
        """Move to where the weights are."""
        where = [weight.device for weight in self.weights]
        self.active = [on.to(device) for on, device in zip(self.active, where, strict=True)]
        self._factors = factors(self.active, self.weights)

    def counts(self) -> list[int]:
        """Active weights per tensor."""
        if not self._counts:
            self._counts = [int(torch.count_nonzero(on)) for on in self.active]
        return list(self._counts)

    @torch.no_grad()
    def zero_(self) -> None:
        """Zero inactive weights."""
        torch._foreach_mul_(self.weights, self._factors)
        torch._foreach_add_(self.weights, 0.0)  # negative zeros become plain ones

    @torch.no_grad()
    def clear_gradients_(self) -> None:
        """Zero the gradients of inactive weights."""
        scale_gradients_(self.weights, self._factors)

    @torch.no_grad()
    def after_step_(self, optimizer: Optimizer) -> None:
        """Zero inactive weights where the optimizer may have moved them."""
        if type(optimizer) not in _KEEP_ZERO:
            torch._foreach_mul_(self.weights, self._factors)

    @torch.no_grad()
    def clear_state_(self, optimizer: Optimizer) -> None:
        """Zero what the optimizer remembers of inactive weights."""
        for weight, factor in zip(self.weights, self._factors, strict=True):
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(factor)


def factors(masks: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Each mask as ones and zeros of the type and the memory format of its tensor in ``like``."""
    return [torch.empty_like(part).copy_(_bytes(on)) for on, part in zip(masks, like, strict=True)]


def _bytes(mask: Tensor) -> Tensor:
    """The same memory: torch converts bytes eight times as fast as booleans."""
    return mask.view(torch.uint8)
