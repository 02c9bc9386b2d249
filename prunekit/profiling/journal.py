"""The append-only journal of a profile: a killed run loses at most the round it was in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.support.errors import FileError, TableError

JOURNAL_VERSION = 2


def head_of(path: Path) -> dict[str, Any]:
    """What the journal at ``path`` says is being measured; empty when there is none."""
    try:
        head = json.loads(path.read_text().partition("\n")[0])
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}


def damaged(path: Path, line: int) -> FileError:
    """The error for a line that no profile wrote."""
    return FileError(f"journal {path} is damaged at line {line}; remove it to start again")


def refuse_other(where: str, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise TableError that names the first setting that differs, if one does."""
    key = next((k for k in {**now, **was} if was.get(k) != now.get(k)), None)
    if key is None:
        return
    differs = f"was {was.get(key)} and is {now.get(key)} now"
    if key == "probe":
        differs = f"was {'given' if was.get(key) else 'left out'} and is not now"
        differs = "is of another device now" if was.get(key) and now.get(key) else differs
    raise TableError(
        f"{where} is of another profile: `{key}` {differs}; remove it or profile without --resume"
    )


class Journal:
    """One JSON line per round, behind a head line that says what is being measured."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.head = {"prunekit": "profile journal", "version": JOURNAL_VERSION, **head}

    def resume(self, needs: Mapping[str, type | tuple[type, ...]]) -> list[dict[str, Any]]:
        """The rounds already there; a line cut off by a crash is dropped.

        ``needs`` are the entries of a round, with their types.
        """
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read journal {self.path}: {error}") from error
        rows = [
            row
            for number, line in enumerate(lines)
            if (row := self._read(line, number, lines)) is not None
        ]
        if not rows:
            return []
        if rows[0] != self.head:
            refuse_other(f"journal {self.path}", rows[0], self.head)
        for number, row in enumerate(rows[1:], 2):
            if not all(isinstance(row.get(name), kind) for name, kind in needs.items()):
                raise damaged(self.path, number)
        self._rewrite(rows)
        return rows[1:]

    def _read(self, line: str, number: int, lines: list[str]) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) - 1:
                return None
            raise damaged(self.path, number + 1) from error
        if not isinstance(row, dict):
            raise damaged(self.path, number + 1)
        return row

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        from prunekit.support.files import write_text

        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def start(self) -> None:
        """Begin anew."""
        self._rewrite([self.head])

    def append(self, row: dict[str, Any]) -> None:
        """Add one round, on disk when this returns."""
        import os

        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
