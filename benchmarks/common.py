"""What the benchmark scripts share: running the command line, and saving results."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtrit

RESULTS = Path(__file__).parent / "results"
CONFIDENCE = 0.9
"""Of the intervals of differences."""


def prunekit(*arguments: str) -> tuple[int, dict[str, Any], float]:
    """Run one command in a process of its own: exit status, its JSON, and seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "prunekit", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr}") from None
    return done.returncode, found, time.monotonic() - started


@contextmanager
def beside(count: int, *busy: str) -> Iterator[None]:
    """So many processes that keep a core busy each, in turns with the programs ``busy``."""
    programs = busy or ("while True: pass",)
    running = [
        subprocess.Popen([sys.executable, "-c", programs[number % len(programs)]])
        for number in range(count)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def save(name: str, value: Any) -> None:
    """Write ``benchmarks/results/name.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote benchmarks/results/{name}.json")


def code() -> str:
    """A digest of the package's sources: results that share it come from the same code."""
    found = hashlib.sha256()
    for path in sorted((Path(__file__).parent.parent / "prunekit").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:10]


def compared(points: Sequence[float]) -> dict[str, Any]:
    """Differences, one a seed, as their mean, half of Student's 90 % interval, and a word."""
    error = stdev(points) / math.sqrt(len(points)) if len(points) > 1 else math.nan
    return _told(mean(points), error, len(points) - 1)


def set_apart(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The same of two samples that have no seed in common (Welch)."""
    if min(len(one), len(other)) < 2:
        return _told(mean(one) - mean(other), math.nan, 0)
    parts = [stdev(values) ** 2 / len(values) for values in (one, other)]
    whole = sum(parts)
    lost = sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    degrees = whole**2 / lost if lost else len(one) + len(other) - 2
    return _told(mean(one) - mean(other), math.sqrt(whole), degrees)


def _told(middle: float, error: float, degrees: float) -> dict[str, Any]:
    if math.isnan(error):
        return {"mean": round(middle, 4), "half": None, "word": "one seed"}
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    word = "level" if abs(middle) <= half else "higher" if middle > 0 else "lower"
    return {"mean": round(middle, 4), "half": round(half, 4), "word": word}


def worded(found: dict[str, Any]) -> str:
    """What :func:`compared` found, in a table's cell."""
    half = "" if found["half"] is None else f" ± {found['half']:.2f}"
    return f"{found['mean']:+.2f}{half} ({found['word']})"
