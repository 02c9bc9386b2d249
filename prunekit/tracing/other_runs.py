"""Other ways that a forward may go: flipped answers, other sizes, values that leave PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunekit.networks.running import each
from prunekit.tracing.branches import QUESTIONS
from prunekit.tracing.calls import operator_name
from prunekit.tracing.dispatch import OperatorMode
from prunekit.tracing.values import batch_of_two

EXPORTS = ("tolist", "numpy", "__array__", "__dlpack__")
"""What hands all values of a tensor to others."""
FLIPS = 8
"""Values asked for that are flipped, each alone and all at once, to follow the other branch."""


class FlippedAnswers(OperatorMode):
    """Gives other values than those asked for in ``which`` questions, and remembers them all.

    The other truth value, the next or previous whole number, a number of another size and sign.
    """

    def __init__(self, which: Collection[int] = (), sign: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.which, self.sign = which, sign
        self.asked: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, (bool, int, float)):
            return out
        if operator_name(func) not in QUESTIONS:
            return out
        self.asked.append(type(out) is bool)
        if len(self.asked) - 1 not in self.which:
            return out
        if isinstance(out, bool):
            return not out
        return out + self.sign * (1 if isinstance(out, int) else 1 + 2 * abs(out))

    def again(self) -> FlippedAnswers:
        """The same, to be used once more."""
        return FlippedAnswers(self.which, self.sign)


class Exports(TorchFunctionMode):
    """Tells where values leave PyTorch."""

    def __init__(self, tell: Callable[[], Any]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in EXPORTS:
            self.tell()
        return func(*args, **(kwargs or {}))


def flips(asked: Sequence[bool]) -> list[FlippedAnswers]:
    """Ways to flip the values asked for: each of the first ones alone, then all of them."""
    first = range(min(len(asked), FLIPS))
    ways: list[tuple[tuple[int, ...], int]]
    ways = [((i,), sign) for i in first for sign in (1, -1) if sign > 0 or not asked[i]]
    if len(first) > 1:
        ways += [(tuple(first), sign) for sign in (1, -1)]
    return [FlippedAnswers(*way) for way in ways]


def variants(example: Any) -> list[Any]:
    """The example twice, its first sample, and its pictures or sequences longer and shorter."""

    def longer(value: Tensor) -> Tensor:
        for axis in _sizes(value):
            value = torch.cat([value, value], axis)
        return value

    def shorter(value: Tensor) -> Tensor:
        for axis in _sizes(value):
            value = value.narrow(axis, 0, -(-value.shape[axis] // 2))
        return value

    one = each(example, lambda value: value[:1] if value.ndim else value)
    return [batch_of_two(example), one, each(example, longer), each(example, shorter)]


def _sizes(value: Tensor) -> range:
    """The axes of a picture's height and width, or of a sequence's length."""
    return range(2, value.ndim) if value.ndim > 3 else range(1, min(value.ndim, 2))


def random_state() -> Any:
    """The state of Python's and NumPy's random numbers."""
    state: Any = np.random.get_state()  # noqa: NPY002 - what models draw from
    return random.getstate(), state[1].tobytes(), state[2:]
