"""Which clock and which statistic of a ratio repeats best from session to session, idle and loaded.

    python benchmarks/clocks.py

Every session is a fresh process with plain ONNX Runtime that loads a dense and a narrow file twice
and lets them take turns; each run's wall time, its thread's CPU time and whether the system
interrupted it are kept. Sessions of five pairs are spread over the whole time, beside none, one and
three busy processes, with and without precedence over them. Said of each way to make a ratio: its
bias against the idle sessions' median, and its standard deviation between sessions, in percent.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from common import beside, save
from numpy.typing import NDArray
from promise import BUSY, _pair

from prunekit.core.target import cpu_environment

Rows: TypeAlias = NDArray[np.float64]
"""(load, round, block, artifact, start, wall ms, cpu ms, interrupted) a run."""
CHOSEN = (
    *("resnet20_w32 50%", "resnet20 60%", "mobilenet_v1 60%"),
    *("mobilenet_v2 60%", "resnet50 50%"),
)
LOADS = (0, 1, 3)
SECONDS = 2.0
LOAD, ROUND, ARTIFACT, WALL, CPU, INTERRUPTED = 0, 1, 3, 5, 6, 7


def session(dense: str, narrow: str, out: str, seed: int) -> None:
    """One session, in this process."""
    import resource

    import onnxruntime as ort

    rng, clock, own = np.random.default_rng(seed), time.perf_counter_ns, time.thread_time_ns

    def switches() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw

    def load(path: str) -> tuple[Any, dict[str, Any]]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        engine = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given,) = engine.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        return engine, {given.name: rng.standard_normal(shape).astype(np.float32)}

    rows: list[tuple[float, ...]] = []
    for loading in range(2):
        engines = {i: load((dense, narrow)[i]) for i in rng.permutation(2).tolist()}
        typical = {i: _typical_ms(*engine) for i, engine in engines.items()}
        runs = {i: max(1, min(200, round(12 / ms))) for i, ms in typical.items()}
        began, number = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS / 2:
            for block in range(3):
                for i in rng.permutation(2).tolist():
                    engine, feed = engines[i]
                    engine.run(None, feed)
                    before = switches()
                    for _ in range(runs[i]):
                        cpu, wall = own(), clock()
                        engine.run(None, feed)
                        ended, cpu_ended, after = clock(), own(), switches()
                        times = (ended - wall) / 1e6, (cpu_ended - cpu) / 1e6
                        where = (loading, number, block, i, wall / 1e9)
                        rows.append((*where, *times, float(after != before)))
                        before = after
            number += 1
    np.savez_compressed(out, rows=np.array(rows))


def _typical_ms(engine: Any, feed: dict[str, Any]) -> float:
    times, stop = [], time.perf_counter() + 0.1
    while time.perf_counter() < stop:
        began = time.perf_counter()
        engine.run(None, feed)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[len(times) // 2 :]))


def collect(folder: Path, count: int) -> None:
    """All sessions that are not there yet, their conditions in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {name: _pair(name) for name in CHOSEN}
    for number in range(count):
        for load in LOADS:
            for precedence in (False, True):
                with beside(load, *BUSY):
                    for name, files in pairs.items():
                        out = folder / f"{name}.{load}.{precedence}.{number}.npz"
                        if out.exists():
                            continue
                        paths = (str(files / "dense.onnx"), str(files / "model.onnx"))
                        command = [sys.executable, __file__, "--session", *paths, str(out)]
                        first = (lambda: os.nice(-15)) if precedence else None
                        subprocess.run([*command, str(number)], check=True, preexec_fn=first)


def lower_quarter(values: Rows) -> float:
    """Mean of the lower quarter."""
    return float(np.sort(values)[: max(1, len(values) // 4)].mean())


STATISTICS: dict[str, Callable[[Rows], float]] = {
    "median": lambda values: float(np.median(values)),
    "lower quarter": lower_quarter,
    "minimum": lambda values: float(values.min()),
    "mean": lambda values: float(values.mean()),
}
WAYS = [
    (clock, drop, statistic)
    for clock in ("wall", "cpu")
    for drop in (True, False)
    for statistic in STATISTICS
]


def log_ratio(rows: Rows, clock: str, drop: bool, statistic: str) -> float:
    """The session's ratio: the median over rounds of the ratio of the two statistics of each."""
    times = rows[:, WALL if clock == "wall" else CPU]
    clean = rows[:, INTERRUPTED] == 0
    logs = []
    for loading, number in sorted({(r[LOAD], r[ROUND]) for r in rows}):
        of_round = (rows[:, LOAD] == loading) & (rows[:, ROUND] == number)
        sides = []
        for artifact in (0, 1):
            mine = of_round & (rows[:, ARTIFACT] == artifact)
            kept = mine & clean if drop and 2 * (mine & clean).sum() >= mine.sum() else mine
            sides.append(STATISTICS[statistic](times[kept]))
        logs.append(math.log(sides[1] / sides[0]))
    return float(np.median(logs))


def analyse(folder: Path) -> dict[str, Any]:
    """Bias and spread of all ways, by condition and pair."""
    sessions: dict[tuple[str, int, bool], list[Rows]] = {}
    for path in sorted(folder.glob("*.npz")):
        name, load, precedence, _ = path.stem.rsplit(".", 3)
        key = name, int(load), precedence == "True"
        sessions.setdefault(key, []).append(np.load(path)["rows"])
    reference = {
        name: float(np.median([log_ratio(r, "wall", True, "median") for r in taken]))
        for (name, load, precedence), taken in sessions.items()
        if load == 0 and not precedence
    }
    rows = []
    for (name, load, precedence), taken in sorted(sessions.items()):
        for clock, drop, statistic in WAYS:
            logs = [log_ratio(one, clock, drop, statistic) for one in taken]
            rows.append(
                {
                    "pair": name,
                    "beside": load,
                    "precedence": precedence,
                    "clock": clock,
                    "dropped": drop,
                    "statistic": statistic,
                    "bias": round(100 * (float(np.mean(logs)) - reference[name]), 2),
                    "spread": round(100 * float(np.std(logs, ddof=1)), 2),
                    "sessions": len(logs),
                }
            )
    return {"ratios": {name: math.exp(log) for name, log in reference.items()}, "rows": rows}


def show(found: dict[str, Any]) -> None:
    """Root mean squares over the pairs."""
    print("| beside | precedence | clock | interrupted | statistic | bias | spread |")
    print("|---|---|---|---|---|---|---|")
    conditions = sorted({(r["beside"], r["precedence"]) for r in found["rows"]})
    for load, precedence in conditions:
        for clock, drop, statistic in WAYS:
            wanted = (load, precedence, clock, drop, statistic)
            names = ("beside", "precedence", "clock", "dropped", "statistic")
            mine = [r for r in found["rows"] if tuple(r[n] for n in names) == wanted]
            bias, spread = (
                math.sqrt(np.mean([r[what] ** 2 for r in mine])) for what in ("bias", "spread")
            )
            kept = "dropped" if drop else "kept"
            yes = "yes" if precedence else "no"
            print(
                f"| {load} | {yes} | {clock} | {kept} | {statistic} | {bias:.1f} | {spread:.1f} |"
            )


def main() -> None:
    """Collect what is missing, and tell it."""
    if "--session" in sys.argv:
        dense, narrow, out, seed = sys.argv[-4:]
        session(dense, narrow, out, int(seed))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(tempfile.gettempdir()) / "prunekit-clocks"
    parser.add_argument("--folder", type=Path, default=folder, help="where sessions are kept")
    parser.add_argument("--count", type=int, default=8, help="sessions of each kind")
    given = parser.parse_args()
    collect(given.folder, given.count)
    found = analyse(given.folder)
    found["environment"] = asdict(cpu_environment(version("onnxruntime")))
    save("clocks", found)
    show(found)


if __name__ == "__main__":
    main()
