"""Modes that see every operator, without PyTorch's compiler where nothing is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode

M = TypeVar("M", bound="OperatorMode")


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode whose first operator does not import the compiler.

    PyTorch keeps its compiler off a mode's own code, and imports it for that: it takes as long
    as tracing a small network. Where it is not imported there is nothing to keep off.
    """

    _plain: ClassVar[Callable[..., Any]]
    _kept_off: ClassVar[Callable[..., Any]]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # done below, when a mode is entered

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)  # type: ignore[no-untyped-call]
        cls._plain = cls.__torch_dispatch__
        cls._kept_off = _disable_dynamo(cls.__torch_dispatch__)

    def __enter__(self: M) -> M:
        kind = type(self)
        loaded = "torch._dynamo" in sys.modules
        kind.__torch_dispatch__ = kind._kept_off if loaded else kind._plain  # type: ignore[method-assign]
        entered: M = super().__enter__()  # type: ignore[no-untyped-call]
        return entered
