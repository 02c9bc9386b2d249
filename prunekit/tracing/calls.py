"""Operator calls as their handlers see them, and the table of handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from prunekit.tracing.follow_dispatch import Flow


def operator_name(func: Any) -> str:
    """Without namespace and overload, such as ``add_``."""
    return str(func.name()).split("::")[-1].split(".")[0]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an aten operator, with its arguments by the names of its schema."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Without namespace and overload, such as ``add_``."""
        return operator_name(self.func)

    @cached_property
    def named(self) -> dict[str, Any]:
        """All arguments by name, defaults included."""
        schema = self.func._schema.arguments
        found = {a.name: a.default_value for a in schema if a.has_default_value()}
        found |= {a.name: value for a, value in zip(schema, self.args, strict=False)}
        return found | self.kwargs

    def __getitem__(self, name: str) -> Any:
        return self.named.get(name)

    @property
    def x(self) -> Tensor:
        """The first argument."""
        first: Tensor = self.args[0]
        return first

    @property
    def result(self) -> Tensor:
        """The first tensor that came out."""
        return flat(self.out)[0]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that went in."""
        return flat((self.args, self.kwargs))

    def on(self, tensor: Tensor) -> Any:
        """The same call with another first argument."""
        return self.func(tensor, *self.args[1:], **self.kwargs)

    def axis(self, rank: int | None = None, default: int = 0) -> int:
        """The argument ``dim``, counted from the front."""
        dim = self["dim"]
        return int(default if dim is None else dim) % (rank or self.x.ndim)


Handler = Callable[["Flow", Call], None]
HANDLERS: dict[str, Handler] = {}


def handles(names: str) -> Callable[[Handler], Handler]:
    """Register a handler for aten operators (names between spaces), in-place forms included."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names.split(), handler))
        return handler

    return register


def flat(value: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in flat(item)]
    return []
