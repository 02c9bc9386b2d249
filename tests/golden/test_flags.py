"""Every command of `prunekit` with every flag: as recorded in flags.json.

A default is the one that the command line itself holds, None where there is none or where it comes
from elsewhere. `python tests/golden/record.py flags` records them anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import recorded

APP = "prunekit.cli.main:app"
FILE = "flags.json"


def _plain(value: Any) -> Any:
    """A default as JSON has it; None for one that is not set."""
    if value is None or type(value).__name__ == "Sentinel":
        return None
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


NAMES = {"str": "text", "int": "integer", "bool": "boolean", "integer range": "integer"}


def _type(parameter: Any) -> str:
    """The type's plain name, with its choices or its range."""
    kind = getattr(parameter, "type", None)
    holder = parameter if kind is None else kind  # typer has had its own parameters since 0.29
    name = parameter.type_descriptor.annotation.__name__ if kind is None else kind.name
    name = NAMES.get(name.lower(), name.lower())
    if choices := getattr(holder, "choices", None):
        return f"{name} of {', '.join(map(str, choices))}"
    low, high = getattr(holder, "min", None), getattr(holder, "max", None)
    bounds = [f"{word} {end:g}" for word, end in (("from", low), ("to", high)) if end is not None]
    return " ".join([name, *bounds])


def flags() -> dict[str, dict[str, Any]]:
    """By command and name; a command's own entry has its help."""
    import typer

    found: dict[str, dict[str, Any]] = {}

    def add(path: str, command: Any) -> None:
        found[path] = {"help": command.help}
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            name = max(parameter.opts, key=len) if is_option else parameter.name
            found[f"{path} {name}"] = {
                "name": parameter.name,
                "kind": parameter.param_type_name,
                "flags": [*parameter.opts, *parameter.secondary_opts] if is_option else [],
                "type": _type(parameter),
                "default": _plain(parameter.default),
                "required": parameter.required,
                "multiple": bool(getattr(parameter, "multiple", False)) or parameter.nargs != 1,
                "metavar": parameter.metavar,
                "help": getattr(parameter, "help", None),
            }
        for name, below in getattr(command, "commands", {}).items():
            add(f"{path} {name}", below)

    add("prunekit", typer.main.get_command(recorded.found(APP)))
    return dict(sorted(found.items()))


def record() -> None:
    recorded.write(FILE, flags(), depth=1)


def test_flags_are_as_recorded() -> None:
    recorded.check(FILE, flags())


def test_flags_are_known_without_torch() -> None:
    code = (
        "import sys, test_flags; test_flags.flags(); "
        "sys.exit([name for name in ('torch', 'numpy', 'onnx') if name in sys.modules] or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=recorded.HERE,
        env={**os.environ, "PYTHONPATH": str(recorded.HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
