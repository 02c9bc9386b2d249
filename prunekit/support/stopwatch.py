"""Where a run's seconds go: by stage, each second counted once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunekit.support.files import read_object, write_text
from prunekit.support.progress import say


class Stopwatch:
    """Seconds by stage; those of a stage inside another are not the outer one's too.

    Stages that were announced are told when they begin, with their number and the time so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0
        self._announced: list[str] = []
        self._kept: Path | None = None

    def restart(self) -> None:
        """Forget everything, for another run."""
        self.__init__()  # type: ignore[misc]

    def announce(self, stages: Sequence[str]) -> None:
        """The stages of a run, in order."""
        self._announced = list(stages)

    def keep_in(self, path: Path) -> None:
        """Write the seconds to ``path`` after every stage, on top of those that are there."""
        self._kept = path
        if path.is_file():
            for stage, seconds in read_object(path, "seconds").items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + float(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the block as that of ``name``."""
        self._count()
        if name in self._announced and name not in self.seconds and not self._open:
            number, minutes = self._announced.index(name) + 1, self.whole / 60
            say(f"stage {number} of {len(self._announced)}, after {minutes:.1f} min: {name}")
        self.seconds.setdefault(name, 0.0)
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()
            if not self._open and self._kept is not None and self._kept.parent.is_dir():
                write_text(self._kept, json.dumps(self.seconds))

    @property
    def whole(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def _count(self) -> None:
        now = time.monotonic()
        if self._open:
            stage = self._open[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


stages = Stopwatch()
"""Of this process."""
