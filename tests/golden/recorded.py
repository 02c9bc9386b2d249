"""Files of what must not change: one entry a line, so that a change shows as a line of a diff."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def found(where: str) -> Any:
    """What ``package.module:name`` means."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def text_of(value: Any, indent: str = "", depth: int = 99) -> str:
    """JSON in which lists of scalars, and all that lies below ``depth``, take one line."""
    inner = indent + " "
    if isinstance(value, dict) and value and depth:
        rows = [
            f"{inner}{json.dumps(key)}: {text_of(part, inner, depth - 1)}"
            for key, part in value.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and depth and any(isinstance(part, dict | list) for part in value):
        rows = [inner + text_of(part, inner, depth - 1) for part in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(name: str, value: Any, depth: int = 99) -> None:
    """Record ``value``."""
    (HERE / name).write_text(text_of(value, depth=depth) + "\n")


def read(name: str) -> Any:
    """What was recorded."""
    return json.loads((HERE / name).read_text())


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Entries that went, came or changed, in words."""
    changed = [name for name in was if name in now and was[name] != now[name]]
    return [
        *(f"gone: {name}: {was[name]}" for name in was if name not in now),
        *(f"new: {name}: {now[name]}" for name in now if name not in was),
        *(f"changed: {name}\n  was {was[name]}\n  now {now[name]}" for name in changed),
    ]


def check(name: str, now: dict[str, Any]) -> None:
    """Fail with the entries that are not as recorded; `python tests/golden/record.py` records."""
    apart = differences(read(name), json.loads(json.dumps(now)))
    assert not apart, f"{name} differs:\n" + "\n".join(apart)
