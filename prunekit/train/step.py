"""One optimizer step in a loop of one's own, with what a method does before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.support.errors import UsageError
from prunekit.support.processes import average_

PATIENCE = 16
"""Further steps that a method waits for finite gradients: mixed precision overflows at times."""


class Hooks(Protocol):
    """What a method does around a step."""

    def after_backward(self, model: nn.Module, step: int) -> None:
        """With gradients there, before the optimizer uses them."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """With the step taken."""


def take_step(
    hooks: Hooks,
    network: nn.Module,
    optimizer: Optimizer,
    step: int,
    clip_norm: float,
    scaler: GradScaler | None,
) -> None:
    """Average the gradients of all processes, and step between the two hooks.

    Clipping comes after the first hook: what it takes out of training must not count.
    """
    average_(p.grad for p in network.parameters() if p.grad is not None)
    if scaler is not None:  # after averaging, so that an overflow is every process's
        scaler.unscale_(optimizer)
    hooks.after_backward(network, step)
    if clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    hooks.after_step(network, optimizer, step)


def check_optimizer(method: str, begun: Optimizer | None, given: Optimizer) -> None:
    """Refuse another optimizer than the one that ``method`` was begun with."""
    if given is not begun:
        raise UsageError(
            f"{method} was begun with another optimizer; give it the same at each step"
        )


def scale_gradients_(parameters: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply the gradients that are there, each by its factor, in one fused product."""
    pairs = [
        (p.grad, factor)
        for p, factor in zip(parameters, factors, strict=True)
        if p.grad is not None
    ]
    if pairs:  # not so where the loss reads none of them
        torch._foreach_mul_([g for g, _ in pairs], [factor for _, factor in pairs])
