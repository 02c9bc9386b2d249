"""CPU and wall seconds of whole commands of two checkouts, idle and beside busy processes.

    python benchmarks/seconds.py --before ../before --after .

Runs of both take turns. What is measured already is not measured again; `--again` forgets it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, beside, save

from prunekit.core.target import cpu_environment

NAME = "seconds"
ONESHOT = ("--criterion", "magnitude", "--method", "oneshot", "--epochs", "0")
LARGE = ("--input", "1x3x224x224")
COMMANDS = {
    "inspect mobilenet_v2": ("inspect", "torchvision:mobilenet_v2", *LARGE),
    "inspect resnet50": ("inspect", "torchvision:resnet50", *LARGE),
    "inspect resnet20_w32": ("inspect", "zoo:resnet20_w32", "--input", "1x3x16x16"),
    "prune digits": (
        *("prune", "zoo:resnet20_w32", "--data", "digits", "--input", "1x3x16x16"),
        *("--from-scratch", "--target-latency", "50%", "-o", "{folder}/run"),
    ),
    "prune resnet50": (
        *("prune", "torchvision:resnet50", *LARGE, *ONESHOT),
        *("--target-latency", "50%", "-o", "{folder}/run"),
    ),
}
DEFAULT = tuple(name for name in COMMANDS if name.startswith("inspect"))


def timed(checkout: Path, arguments: Sequence[str], threads: str, limit: float) -> dict[str, float]:
    """One command: seconds of CPU (user and system, its children's too) and on the clock.

    It is cut off after ``limit`` seconds; the figures are then what it took so far.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    environment.pop("OMP_NUM_THREADS", None)
    if threads != "unset":
        environment["OMP_NUM_THREADS"] = threads
    with tempfile.TemporaryDirectory() as folder:
        command = [part.replace("{folder}", folder) for part in arguments]
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "prunekit", *command, "--quiet"],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        timer = threading.Timer(limit, process.kill)
        timer.start()
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    late = process.returncode < 0 and wall >= limit
    if process.returncode not in (0, 1) and not late:  # 1: the target was missed
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}: {error.decode()}")
    return {"cpu": round(usage.ru_utime + usage.ru_stime, 2), "wall": round(wall, 2)}


def row(name: str, runs: dict[str, list[dict[str, float]]]) -> str:
    """A line of the table: medians, and the share that is left."""
    middle = {
        (side, what): median(run[what] for run in runs[side])
        for side in runs
        for what in ("cpu", "wall")
    }
    cells = [f"{middle['before', w]:.2f} | {middle['after', w]:.2f}" for w in ("cpu", "wall")]
    left = middle["after", "cpu"] / middle["before", "cpu"]
    return f"| {name} | {cells[0]} | {left:.0%} | {cells[1]} |"


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, required=True, help="another")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=600, help="seconds of one command")
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--threads", nargs="*", default=["1", "unset"], help="OMP_NUM_THREADS")
    parser.add_argument("--only", nargs="*", default=DEFAULT, choices=[*COMMANDS])
    parser.add_argument("--again", action="store_true", help="forget what is measured")
    given = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    known: dict[str, Any] = {"environment": asdict(cpu_environment(version("torch"))), "rows": {}}
    if path.exists() and not given.again:
        known = json.loads(path.read_text())
    checkouts = {"before": given.before, "after": given.after}
    print(
        "| command | CPU before | after | left | clock before | after |\n|---|---|---|---|---|---|"
    )
    for command in given.only:
        for threads in given.threads:
            for count in given.busy:
                name = f"{command}, OMP_NUM_THREADS {threads}, beside {count}"
                runs = known["rows"].setdefault(name, {side: [] for side in checkouts})
                with beside(count):
                    while min(map(len, runs.values())) < given.runs:
                        for side, checkout in checkouts.items():
                            runs[side].append(
                                timed(checkout, COMMANDS[command], threads, given.limit)
                            )
                        path.write_text(json.dumps(known, indent=1) + "\n")
                print(row(name, runs), flush=True)
    save(NAME, known)


if __name__ == "__main__":
    main()
