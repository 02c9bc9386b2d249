"""Named plugins (runtimes, criteria, ...), built in or from a third party's entry points."""

from __future__ import annotations

from ast import literal_eval
from importlib.metadata import entry_points
from typing import Any

from prunekit.support.errors import UsageError


class Registry:
    """Names to objects of one kind, from the entry points ``prunekit.<kind>``, loaded when used."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._loaded: dict[str, Any] = {}

    def names(self) -> list[str]:
        """All known names, sorted."""
        installed = [entry.name for entry in entry_points(group=f"prunekit.{self.kind}")]
        twice = sorted({name for name in installed if installed.count(name) > 1})
        if twice:
            raise UsageError(
                f"two installed packages register the {self.kind} name {twice[0]!r}; "
                "uninstall one of them"
            )
        return sorted({*installed, *self._loaded})

    def register(self, name: str, item: Any) -> None:
        """Add ``item`` under ``name``; a name already taken is an error."""
        if name in self.names():
            raise UsageError(f"the {self.kind} name {name!r} is already registered")
        self._loaded[name] = item

    def get(self, name: str) -> Any:
        """The object called ``name``; an unknown name lists the known ones."""
        known = self.names()
        if name not in known:
            raise UsageError(f"unknown {self.kind} name {name!r}; known: {', '.join(known)}")
        if name not in self._loaded:
            (entry,) = [e for e in entry_points(group=f"prunekit.{self.kind}") if e.name == name]
            try:
                self._loaded[name] = entry.load()
            except (ImportError, AttributeError) as error:
                raise UsageError(
                    f"the {self.kind} name {name!r} is registered as {entry.value}, which "
                    f"cannot be imported: {error}; repair or uninstall its package"
                ) from error
        return self._loaded[name]

    def make(self, text: str) -> Any:
        """One of these, built from ``name`` or ``name:option=value,option=value``."""
        name, colon, rest = text.partition(":")
        options = {}
        for part in rest.split(",") if colon else ():
            key, equals, value = part.partition("=")
            if not (key and equals and value):
                raise UsageError(f"cannot read {text!r}; write {name}:option=value,option=value")
            try:
                options[key.strip()] = literal_eval(value.strip())
            except (ValueError, SyntaxError):
                options[key.strip()] = value.strip()
        kind = self.get(name)
        try:
            return kind(**options)
        except TypeError as error:
            raise UsageError(f"{self.kind} name {name!r}: {error}") from error


runtimes = Registry("runtimes")
criteria = Registry("criteria")
allocators = Registry("allocators")
tasks = Registry("tasks")
