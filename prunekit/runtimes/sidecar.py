"""Machine code on disk, and a description beside it: ``model.engine`` and ``model.engine.json``.

Loading such a file runs it: load only what you trust. The description keeps mistakes out, not
attackers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from prunekit.support.errors import FileError
from prunekit.support.files import load_json, replacing, save_json, sha256_file


class Facts(Protocol):
    """A description; ``file_sha256`` is the checksum of what it describes."""

    @property
    def file_sha256(self) -> str:
        """Hexadecimal."""
        ...


F = TypeVar("F", bound=Facts)
VERSION = 1


def facts_path(path: str | Path) -> Path:
    """The description of the file at a path."""
    return Path(f"{path}.json")


def save_described(path: str | Path, content: bytes, facts: Facts, kind: str) -> None:
    """Write both files; an interrupt leaves no file rather than one of another description."""
    path = Path(path)
    with replacing(path) as file, replacing(facts_path(path)) as description:
        file.write_bytes(content)
        save_json(description, facts, kind, VERSION)
        path.unlink(missing_ok=True)


def load_facts(path: str | Path, type_: type[F], kind: str, remedy: str) -> F:
    """The description of the file at ``path``, proved to be that of this very file."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no artifact at {path}")
    if not facts_path(path).is_file():
        raise FileError(
            f"{path} has no description {facts_path(path).name} beside it, so that nobody knows "
            f"what it was made for; {remedy}"
        )
    facts = load_json(facts_path(path), type_, kind, VERSION)
    if sha256_file(path) != facts.file_sha256:
        raise FileError(
            f"{path} is not the file that {facts_path(path).name} describes (edited, damaged or "
            f"of another export); {remedy}"
        )
    return facts
