"""What the benchmark scripts share: running the command line, and saving results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def save(name: str, value: Any) -> None:
    """Write ``benchmarks/results/name.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote benchmarks/results/{name}.json")
