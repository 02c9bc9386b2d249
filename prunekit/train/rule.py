"""What a pruning method is to the training loop: a few calls at fixed places in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["JSON", "Facts", "NoRule", "Row", "Rule", "Tensors"]

JSON: TypeAlias = Any  # what json.dumps takes
Tensors: TypeAlias = dict[str, Tensor]
Facts: TypeAlias = dict[str, JSON]
"""What json.dumps takes, by name."""
Row: TypeAlias = Mapping[str, JSON]
"""One line of the log; methods have rows of their own types."""


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

    def rows(self) -> Sequence[Row]:
        """What there is for the log since the last call; asked for after every checkpoint."""

    def state(self) -> tuple[Tensors, Facts]:
        """Everything the rule needs to go on after a restart: tensors and JSON facts."""

    def load_state(self, tensors: Tensors, facts: Facts) -> None:
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

    def rows(self) -> Sequence[Row]:
        """Nothing to log."""
        return []

    def state(self) -> tuple[Tensors, Facts]:
        """Nothing to keep."""
        return {}, {}

    def load_state(self, tensors: Tensors, facts: Facts) -> None:
        """Do nothing."""
