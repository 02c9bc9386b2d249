"""What methods keep of themselves for a training that goes on later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunekit.errors import UsageError
from prunekit.sparsify.store import State


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


def unpack(
    names: tuple[str, ...], tensors: Mapping[str, Tensor], others: Mapping[str, Any]
) -> tuple[State, ...]:
    """The states called ``names`` that :func:`pack` took apart, with copies of their tensors."""
    found: dict[str, State] = {name: {} for name in names}
    for where, value in {**tensors, **others}.items():
        name, _, rest = where.partition(".")
        if name not in found:
            continue
        key, _, parameter = rest.partition(".")
        if isinstance(value, Tensor):
            # optimizers count steps on the CPU
            value = (value.cpu() if value.ndim == 0 else value).clone()
        found[name].setdefault(parameter, {})[key] = value
    return tuple(found.values())


def parts(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Copies of what is named ``kind.NAME``, by NAME."""
    start = f"{kind}."
    return {n.removeprefix(start): t.clone() for n, t in tensors.items() if n.startswith(start)}
