"""What methods keep of themselves for a training that goes on later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from prunekit.support.errors import UsageError

T = TypeVar("T")


def check_settings(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError for the first setting that is another now."""
    for name, value in then.items():
        if (changed := now.get(name)) != value:
            raise UsageError(
                f"the {what} to go on with was made with `{name}` {value!r}, now it is "
                f"{changed!r}; use the same to resume"
            )


def pack(states: Mapping[str, State]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer states by a name, as flat tensors and other values: ``name.key.parameter``."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for name, state in states.items():
        for parameter, entry in state.items():
            for key, value in entry.items():
                if value is not None:
                    held = tensors if isinstance(value, Tensor) else others
                    held[f"{name}.{key}.{parameter}"] = value
    return tensors, others


def named(values: Mapping[str, T], kind: str) -> dict[str, T]:
    """What is named ``kind.NAME``, by NAME."""
    start = f"{kind}."
    return {n.removeprefix(start): v for n, v in values.items() if n.startswith(start)}


def unpack(name: str, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> State:
    """The state called ``name`` that :func:`pack` took apart, with copies of its tensors."""
    state: State = {}
    for where, value in {**named(tensors, name), **named(others, name)}.items():
        key, _, parameter = where.partition(".")
        if isinstance(value, Tensor):
            # optimizers count steps on the CPU
            value = (value.cpu() if value.ndim == 0 else value).clone()
        state.setdefault(parameter, {})[key] = value
    return state


State = dict[str, dict[str, Any]]
"""An optimizer's state by the name of the parameter."""
