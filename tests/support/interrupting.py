"""Commands made slow, interrupted after a round or an epoch, here or in another process."""

import hashlib
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import Says

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
import {module} as found
inner = found.{name}
def slowly(*a, **k):
    done = inner(*a, **k)
    time.sleep({seconds})
    return done
found.{name} = slowly
from prunekit.cli.main import main
main()
"""
"""The program, made slow after every round or epoch, so that there is time to interrupt it."""
ROUNDS = {"module": "prunekit.profiling.measuring", "name": "Rounds.run", "seconds": 0.5}
SLOW_EPOCHS = {"module": "prunekit.train.loop", "name": "_epoch", "seconds": 0.5}


def interrupted(
    home: Path, slow: dict[str, Any], command: tuple[object, ...], when: Callable[[], bool]
) -> str:
    """Run ``command`` in a process, send SIGINT once ``when`` holds; gives stderr."""
    code = SLOW.format(**slow)
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 90
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    return err


def interrupted_here(
    prunekit: Says, slow: dict[str, Any], command: tuple[object, ...], when: Callable[[], bool]
) -> str:
    """The same in this process, which saves the start of another; nothing is slowed down."""
    *owners, name = slow["name"].split(".")
    owner = importlib.import_module(slow["module"])
    for attribute in owners:
        owner = getattr(owner, attribute)
    inner = getattr(owner, name)

    def to_the_end(*arguments: Any, **options: Any) -> Any:
        done = inner(*arguments, **options)
        if when():
            signal.raise_signal(signal.SIGINT)
        return done

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, to_the_end)
            status, out, err = prunekit(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, out) == (130, "")
    return err


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def half_written(home: Path) -> list[Path]:
    return [p for p in home.rglob(".*") if p.name not in (".pytest_cache",)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
