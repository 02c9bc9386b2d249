"""How a setting of a recipe stands on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunekit.support.errors import UsageError
from prunekit.support.registry import allocators, criteria, runtimes, tasks

_PLUGINS = {"allocators": allocators, "criteria": criteria, "runtimes": runtimes, "tasks": tasks}


@dataclass(frozen=True)
class Flag:
    """The help of a field's flag; type, choices, default and name are the field's own.

    ``plugins`` is the kind of plugin that the setting names, ``without`` those of them that do not
    fit here. ``example`` is one KEY=VALUE of a setting with options. A setting ``as_text`` is
    written in its own way, such as 25%, and read by the recipe.
    """

    help: str
    section: str = "Options"
    metavar: str | None = None
    plugins: Literal["allocators", "criteria", "runtimes", "tasks"] | None = None
    without: tuple[str, ...] = ()
    example: str = ""
    as_text: bool = False

    def plugin_names(self) -> list[str]:
        """The plugins that may be named, third parties' too; none where they cannot be listed."""
        if self.plugins is None:
            return []
        try:
            return [name for name in _PLUGINS[self.plugins].names() if name not in self.without]
        except UsageError:  # of two packages with one name; said when a plugin is used
            return []
