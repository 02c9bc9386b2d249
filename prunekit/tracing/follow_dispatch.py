"""A dispatcher that shows every operator of a forward to its handler, and to observers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch._ops import HigherOrderOperator

from prunekit.networks.running import not_followed
from prunekit.support.errors import ModelError
from prunekit.tracing.calls import Call
from prunekit.tracing.dispatch import OperatorMode
from prunekit.tracing.labels import Labels
from prunekit.tracing.operators.registry import HANDLERS


class Observer(Protocol):
    """What wants to know of every operator, after its results are labelled."""

    def note(self, call: Call) -> None:
        """One operator."""


class Flow(OperatorMode):
    """Labels the results of everything that runs inside of it, until the deadline.

    What is not followed (for want of a handler, or of time) stays as it is.
    """

    supports_higher_order_operators = True

    def __init__(self, labels: Labels, deadline: float, observers: Sequence[Observer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels, self.deadline = labels, deadline
        self.observers = observers
        self._late = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            name = func.name()  # type: ignore[no-untyped-call]
            raise not_followed(self.labels.where, name)
        out = func(*args, **kwargs)
        call = Call(func, tuple(args), dict(kwargs), out)
        if any(tensor.is_nested for tensor in call.tensors):
            raise ModelError(f"{self.labels.where} uses nested tensors, which cannot be followed")
        self.labels.own.note_uses(call)
        if any(self.labels.has(tensor) for tensor in call.tensors):
            self._follow(call)
        for observer in self.observers:
            observer.note(call)
        return out

    def _follow(self, call: Call) -> None:
        labels = self.labels
        labels.running.note_sum(call)
        labels.operator = call.name
        self._late = self._late or time.monotonic() > self.deadline
        plain = call.name
        if plain.endswith("_") and not plain.startswith("_"):
            plain = plain[:-1]
        handler = HANDLERS.get(plain) if call.func.namespace == "aten" else None
        if handler is not None and not self._late:
            handler(labels, call)
            return
        operator = f"{call.func.namespace}.{call.name} in {labels.where}"
        reason = f"what {operator} does to channels is not known"
        if self._late:
            reason = "following its channels took too long"
        for tensor in call.tensors:
            labels.freeze(labels.parts(tensor), reason)
