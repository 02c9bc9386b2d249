"""What a pruning method is to the training loop: a few calls at fixed places in every step."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["JSON", "NoRule", "Rule"]

JSON: TypeAlias = Any  # what json.dumps takes


class Rule(Protocol):
    """A pruning method inside the loop; ``step`` counts from 0 over the whole training.

    ``model`` is the bare module of this step's network, never a distributed wrapper. With several
    processes every rank makes the same calls with the same gradients, so a rule that draws random
    numbers must draw them from a generator of its own, seeded alike on all ranks. With fp16 a step
    whose gradients overflowed makes both calls too, with infinite gradients, and the optimizer
    leaves it out.
    """

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step or a restart: the model is on its device."""

    def training_network(self, model: nn.Module) -> nn.Module:
        """The network that the next step runs and trains: ``model``, or one of the rule's own.

        The rule then sees to it that the optimizer has that network's parameters.
        """

    def inference_network(self, model: nn.Module) -> nn.Module:
        """The network that is validated, and that the training ends with."""

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Gradients are there and unscaled; clipping and the optimizer's step come next."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """The optimizer has stepped; gradients are still there."""

    def rows(self) -> list[dict[str, JSON]]:
        """What there is for the log since the last call; asked for after every checkpoint."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        """Everything the rule needs to go on after a restart: tensors and JSON facts."""

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, JSON]) -> None:
        """Take back what :meth:`state` gave; the tensors come on the model's device."""


class NoRule:
    """Plain training; a rule derived from it says what differs."""

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Do nothing."""

    def training_network(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def inference_network(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Do nothing."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Do nothing."""

    def rows(self) -> list[dict[str, JSON]]:
        """Nothing to log."""
        return []

    def state(self) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        """Nothing to keep."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, JSON]) -> None:
        """Do nothing."""
