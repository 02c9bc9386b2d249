"""Where results, tables and dense networks of the comparison are kept."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.common import code
from benchmarks.iee_channels.plan import Run

HERE = Path(__file__).parents[1]
HOME = os.environ.get("IEE_CHANNELS_HOME")  # the subset's folder
RUNS = Path(HOME or HERE / "results") / "iee_channels_runs.jsonl"
CACHE = Path(HOME or HERE / ".cache") / "iee_channels"
LOCK = Lock()


def results() -> list[dict[str, Any]]:
    """All results so far, in the order they came."""
    return [*map(json.loads, RUNS.read_text().splitlines())] if RUNS.is_file() else []


def done() -> dict[str, dict[str, Any]]:
    """All results so far, by key."""
    return {row["key"]: row for row in results()}


def record(run: Run, result: dict[str, Any]) -> None:
    """Append one result, with the state of the code that gave it."""
    row = {"key": run.key, **asdict(run), **result, "code": code()}
    with LOCK, RUNS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def dense_weights(run: Run) -> Path:
    """Where the dense network of this run's case and seed is kept."""
    return CACHE / f"{Run(run.case, 'dense', run.seed).key}.safetensors"


def table_of(case: str) -> Path:
    """Where the latency table of a case is kept."""
    return CACHE / f"{case}-table.json"
