"""One optimizer step in a loop of one's own, with what a method does before and after it."""

from __future__ import annotations

from typing import Protocol

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.support.processes import average_


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
