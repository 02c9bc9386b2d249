"""Value questions: where the way of a forward may depend on what its tensors hold."""

from __future__ import annotations

import torch

from prunekit.tracing.calls import Call
from prunekit.tracing.modules import OwnTensors, RunningModules

QUESTIONS = ("_local_scalar_dense", "is_nonzero", "equal")
"""Operators that hand a tensor's values to Python, where the way may depend on them."""
CHOICES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
"""Operators whose result's shape depends on values."""


class ValueQuestions:
    """Where a forward asks for values, other than those that its modules keep."""

    def __init__(self, own: OwnTensors, running: RunningModules) -> None:
        self._own, self._running = own, running
        self.asked: list[bool] = []
        """For every value that Python asked for whether it is a truth value."""
        self.places: dict[str, None] = {}
        """The modules, in words, in which Python or a shape got to know values of tensors."""

    def note(self, call: Call) -> None:
        """One operator."""
        if self._asks(call) and not all(self._own.owners(tensor) for tensor in call.tensors):
            self.tell()

    def _asks(self, call: Call) -> bool:
        if call.name in QUESTIONS:
            self.asked.append(type(call.out) is bool)
            return True
        if call.name == "index":
            return any(i is not None and i.dtype == torch.bool for i in call["indices"])
        return call.name in CHOICES

    def tell(self) -> None:
        """The running module gets to know values, on which its way may depend."""
        self.places[self._running.where] = None
