"""The append-only journal of a profile: a killed run loses at most the round it was in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from prunekit.latency.probe import Probe
from prunekit.profiling.request import ProfileRequest
from prunekit.runtimes import Runtime
from prunekit.support.errors import FileError, TableError
from prunekit.support.files import write_text

JOURNAL_VERSION = 2
Head = Mapping[str, object]
"""What a journal's first line says is being measured: settings by their names."""
E = TypeVar("E")


@dataclass(frozen=True)
class Facts:
    """What a journal must have been started with to be gone on with, besides device and plan.

    None is what a way of profiling has no word on, and the journal none of.
    """

    source: str | None = None
    transfer: tuple[str, str, str] | None = None
    """Device, runtime and date of the table that is transferred."""
    nets: int | None = None
    active: bool | None = None
    shard: tuple[int, int] | None = None
    probe: Probe | None = None

    def head(self) -> Head:
        """What there is of them, as JSON has it."""
        values = TypeAdapter(Facts).dump_python(self, mode="json")
        return {f.name: values[f.name] for f in fields(self) if values[f.name] is not None}


def head_of(path: Path) -> Head:
    """What the journal at ``path`` says is being measured; empty when there is none."""
    try:
        head = json.loads(path.read_text().partition("\n")[0])
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}


def damaged(path: Path, line: int) -> FileError:
    """The error for a line that no profile wrote."""
    return FileError(f"journal {path} is damaged at line {line}; remove it to start again")


def refuse_other(where: str, was: Head, now: Head) -> None:
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


def journal_of(
    request: ProfileRequest, runtime: Runtime, granularity: int, facts: Facts, kind: type[E]
) -> Journal[E] | None:
    """The journal of ``request``, if it has one, for entries of ``kind`` (a dataclass)."""
    if request.journal is None:
        return None
    graph, plan = request.graph, request.plan
    environment = runtime.environment(request.target)
    head = {
        "target": request.target.describe(),
        "device": environment.device_name,
        "runtime": environment.runtime_version,
        "model": graph.fingerprint,
        "inputs": [list(shape) for shape in graph.input_shapes],
        "granularity": granularity,
        "rounds": plan.rounds,
        "turns": plan.turns,
        "seed": plan.seed,
        **facts.head(),
    }
    return Journal(request.journal, head, kind)


class Journal(Generic[E]):
    """One JSON line per entry, behind a head line that says what is being measured.

    An entry is a dataclass (a round, a batch of operators) whose fields are the line's.
    """

    def __init__(self, path: Path, head: Head, kind: type[E]) -> None:
        self.path = path
        self.head = {"prunekit": "profile journal", "version": JOURNAL_VERSION, **head}
        self._entries = TypeAdapter(kind)

    def resume(self) -> list[E]:
        """The entries already there; a line cut off by a crash is dropped."""
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
        entries = [self._entry(lines[number], number + 1) for number in range(1, len(rows))]
        self._rewrite(rows)
        return entries

    def _read(self, line: str, number: int, lines: list[str]) -> Head | None:
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) - 1:
                return None
            raise damaged(self.path, number + 1) from error
        if not isinstance(row, dict):
            raise damaged(self.path, number + 1)
        return row

    def _entry(self, line: str, number: int) -> E:
        try:
            return self._entries.validate_json(line, strict=True)
        except ValidationError as error:
            raise damaged(self.path, number) from error

    def _rewrite(self, rows: Iterable[Head]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def start(self) -> None:
        """Begin anew."""
        self._rewrite([self.head])

    def append(self, entry: E) -> None:
        """Add one entry, on disk when this returns."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(vars(entry)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
