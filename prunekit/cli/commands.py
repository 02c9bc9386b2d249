"""The commands by name; each is imported, and its flags are made, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import getdoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from prunekit.cli.common import PLAIN, Sectioned
from prunekit.cli.flags import with_flags

MODULES = {
    "targets": "targets",
    "inspect": "inspect",
    "profile": "profile_",
    "sweep": "sweep",
    "prune": "prune",
    "sparsify": "sparsify",
    "export": "export",
    "bench": "bench",
    "check": "check",
    "report": "report",
    "table": "table",
    "doctor": "doctor",
}
"""A module has a function of the command's name, or a group."""

COMPLETION = {"--install-completion", "--show-completion"}
"""Typer's own flags; they and the shell's questions are answered by typer, which then exits."""


def _command(name: str) -> Callable[..., Any] | typer.Typer:
    """The function of a command, or the group."""
    module = import_module(f"prunekit.cli.{MODULES[name]}")
    command: Callable[..., Any] | typer.Typer = getattr(module, name)
    return command


class _Built(Mapping[str, Any]):
    """Names to commands as typer builds them, each at its first use."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in MODULES:
            raise KeyError(name)
        if name not in self._built:
            command = _command(name)
            app = command if isinstance(command, typer.Typer) else typer.Typer(**PLAIN)
            if not isinstance(command, typer.Typer):
                app.command(name, cls=Sectioned)(with_flags(command))
            self._built[name] = typer.main.get_command(app)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)

    def __contains__(self, name: object) -> bool:
        return name in MODULES


class Commands(TyperGroup):
    """All commands; to list them with what they do, none is built."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Built()

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of a first reading."""
        return [*MODULES]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command's first line."""
        width = formatter.width - 6 - max(map(len, MODULES))
        rows = []
        for name in self.list_commands(ctx):
            command = _command(name)
            text = command.info.help if isinstance(command, typer.Typer) else getdoc(command)
            rows.append((name, TyperCommand(name, help=text).get_short_help_str(width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
