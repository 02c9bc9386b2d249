"""Progress on stderr for whatever takes longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LINE_SECONDS = 10.0
"""On a pipe, long work says where it is this often."""


@dataclass
class Verbosity:
    """How much is told on stderr: -1 quiet, 0 normal, 1 verbose."""

    level: int = 0


verbosity = Verbosity()


def say(message: str, level: int = 0) -> None:
    """One line on stderr, unless quieter than ``level``."""
    if verbosity.level >= level:
        with suppress(BrokenPipeError):  # nobody reads it; the work goes on
            sys.stderr.write(message.rstrip() + "\n")
            sys.stderr.flush()


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said inside the block."""
    level, verbosity.level = verbosity.level, -1
    try:
        yield
    finally:
        verbosity.level = level


@dataclass
class Bar:
    """What a piece of long work calls to show how far it is."""

    _update: object = None

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Move on by ``steps`` and show ``note`` (a loss, a latency) beside the bar."""
        if callable(self._update):
            self._update(steps, note)


class _Lines:
    """Progress as lines: one every :data:`LINE_SECONDS`, and one at the end."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done, self.note = title, total, 0.0, ""
        self.said = time.monotonic()

    def update(self, steps: float, note: str) -> None:
        self.done += steps
        self.note = note or self.note
        if time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            self._say(f"{min(self.done, self.total):.0f}/{self.total:.0f}")

    def end(self) -> None:
        self._say("done")

    def _say(self, where: str) -> None:
        say(f"{self.title}: {where}{f' ({self.note})' if self.note else ''}")


@contextmanager
def bar(title: str, total: float) -> Iterator[Bar]:
    """A progress bar over ``total`` steps; on a pipe, a line now and then instead."""
    if verbosity.level < 0 or not sys.stderr.isatty():
        lines = _Lines(title, total)
        yield Bar(lines.update)
        lines.end()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task(title, total=total, note="")

        def update(steps: float, note: str) -> None:
            progress.update(task, advance=steps, note=note)

        yield Bar(update)


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Iterate with a bar."""
    with bar(title, total) as shown:
        for item in items:
            yield item
            shown.advance()
