"""A session in a fresh process: placed anew in memory, and before others where the system allows.

The process needs the runtime and NumPy alone. It is started as ``python -m
prunekit.measuring.apart``, reads one request as JSON and writes one session, or an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.measuring.interleaved import Session, Timings, time_session
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import Runtime
from prunekit.support import errors
from prunekit.support.errors import PrunekitError, first_line

NICENESS = (-15, -10, -5)
"""Tried in turn: with the first that is allowed, other processes hardly interrupt a session."""


@dataclass(frozen=True)
class _Request:
    artifacts: tuple[Artifact, ...]
    target: Target
    seed: int
    seconds: float

    def text(self) -> str:
        return json.dumps({**asdict(self), "artifacts": [_facts(one) for one in self.artifacts]})

    @classmethod
    def read(cls, text: str) -> _Request:
        facts = json.loads(text)
        artifacts = tuple(
            Artifact(**{**one, "input_shapes": {k: tuple(v) for k, v in shapes.items()}})
            for one in facts["artifacts"]
            for shapes in [one["input_shapes"]]
        )
        return cls(artifacts, Target(**facts["target"]), facts["seed"], facts["seconds"])


def _facts(artifact: Artifact) -> dict[str, Any]:
    names = ("path", "format", "precision", "sha256", "input_shapes")
    return {name: getattr(artifact, name) for name in names}


def can_run_apart(runtime: Runtime, target: Target) -> bool:
    """Whether sessions of ``runtime`` may have a process each: it says so, and on the CPU only.

    A GPU takes seconds to be set up, and is not disturbed by where a process lies in memory.
    """
    says_so = getattr(runtime, "fresh_processes", False)
    return bool(says_so and target.device == "cpu" and sys.executable)


def session_apart(
    artifacts: Sequence[Artifact], target: Target, seed: int, seconds: float
) -> Session:
    """One session in a process of its own, which ends with it."""
    request = _Request(tuple(artifacts), target, seed, seconds).text()
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(  # noqa: S603 - this interpreter, this module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
    ) as process:
        try:
            output, complaint = process.communicate(request)
        except BaseException:
            process.kill()
            raise
    try:
        answer = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        why = complaint.strip().splitlines()[-1:] or ["it says nothing"]
        raise errors.RuntimeUnavailableError(
            f"{target}: a process that was to time {artifacts[-1].path} ended with status "
            f"{process.returncode}: {first_line(why[0], longest=200)}"
        ) from None
    if "error" in answer:
        raise _error(answer["error"], answer["message"])
    timings = (
        Timings(tuple(one["samples_ms"]), tuple(one["round_medians_ms"]), one["dropped"])
        for one in answer.pop("timings")
    )
    return Session(tuple(timings), **answer)


def _environment() -> dict[str, str]:
    """The environment of this process, in which the package is found wherever this one is from."""
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _error(kind: str, message: str) -> PrunekitError:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, PrunekitError):
        return known(message)
    return errors.RuntimeUnavailableError(message)


def main() -> None:
    """Read a request, time its session, write it."""
    _take_precedence()
    request = _Request.read(sys.stdin.read())
    try:
        session = time_session(
            *(request.artifacts, request.target, runtime_for(request.target)),
            *(request.seed, request.seconds),
            own_clock=time.thread_time if request.target.threads == 1 else None,
        )
        answer = asdict(session)
    except PrunekitError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _take_precedence() -> None:
    for niceness in NICENESS:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
            return


if __name__ == "__main__":
    main()
