"""The rounds of a profile: every network takes turns, watched by the profiler and plain."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.artifact import Artifact
from prunekit.profiling.journal import Journal
from prunekit.progress import bar
from prunekit.runtimes import Engine, Profiler, Runtime
from prunekit.runtimes.racing import switch_counter
from prunekit.target import Target

TURN_MS = 12.0
"""About how long one network runs before it is another's turn."""
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class HarvestPlan:
    """How much to measure: ``nets`` networks (the dense one included), ``rounds`` rounds.

    A round gives each network ``turns`` turns. It ends early after ``max_seconds`` of measuring,
    but never before ``min_rounds``. ``shard`` (number from 1, count) takes a share of the networks.
    """

    nets: int = 10
    rounds: int = 6
    turns: int = 4
    seed: int = 0
    max_seconds: float = 120.0
    min_rounds: int = 3
    shard: tuple[int, int] = (1, 1)


def measure_rounds(
    artifacts: list[Artifact],
    runtime: Runtime,
    target: Target,
    wanted: HarvestPlan,
    done: list[dict[str, Any]],
    log: Journal | None,
    watched: bool = True,
) -> str:
    """Measure the missing rounds into ``done``, each into ``log`` at once; why it ended.

    Networks that are not ``watched`` are timed end to end only.
    """
    engines: list[Engine] = []
    started = time.monotonic()
    try:
        with bar("profiling", wanted.rounds) as shown:
            shown.advance(len(done))
            engines.extend(runtime.load(artifact, target) for artifact in artifacts)
            runs = [_runs_per_turn(engine) for engine in engines]
            for number in range(len(done), wanted.rounds):
                late = time.monotonic() - started > wanted.max_seconds
                if late and number >= wanted.min_rounds:
                    return f"{wanted.max_seconds:g} s"
                profilers = [
                    runtime.profiler(artifact, target) for artifact in artifacts if watched
                ]
                row = _round(profilers, engines, runs, target, wanted, number)
                done.append(row)
                if log is not None:
                    log.append(row)
                dense = float(np.median(row["end_to_end_ms"][0]))
                shown.advance(note=f"dense {dense:.3g} ms")
    finally:
        for engine in engines:
            engine.close()
    return "all rounds"


def _runs_per_turn(engine: Engine) -> int:
    typical = float(np.median(engine.time(WARM_UP_RUNS + 4)[WARM_UP_RUNS:]))
    return int(np.clip(round(TURN_MS / max(typical, 1e-3)), 2, 30))


def _round(
    profilers: list[Profiler],
    engines: list[Engine],
    runs: list[int],
    target: Target,
    wanted: HarvestPlan,
    number: int,
) -> dict[str, Any]:
    """One round: all networks in shuffled order, several times; without profilers, plain runs only.

    The first run of a turn finds the caches full of another network and does not count, and
    neither do runs that another process interrupted, where enough are left.
    """
    rng = np.random.default_rng((wanted.seed, number))
    switches = switch_counter(target.threads)
    count = len(engines)
    plain: list[list[tuple[float, bool]]] = [[] for _ in range(count)]
    watched: list[list[bool]] = [[] for _ in profilers]
    layers: list[list[dict[str, float]]] = []
    waiting = list(profilers)
    try:
        for _ in range(wanted.turns):
            for i in rng.permutation(count):
                if profilers:
                    watched[i] += _watched_turn(profilers[i], runs[i], switches)
                engines[i].time(1)
                for _ in range(runs[i]):
                    before = switches()
                    (took,) = engines[i].time(1)
                    plain[i].append((took, switches() == before))
        while waiting:
            layers.append(waiting.pop(0).finish())
    finally:
        for profiler in waiting:  # only after an error or an interrupt
            with suppress(Exception):
                profiler.finish()
    return {
        "round": number,
        "end_to_end_ms": [_kept(samples) for samples in plain],
        "layers_us": [
            _by_layer(_kept(_paired(found, flags)))
            for found, flags in zip(layers, watched, strict=True)
        ],
    }


def _watched_turn(profiler: Profiler, runs: int, switches: Callable[[], int]) -> list[bool]:
    """Whether each run was undisturbed; the first does not count."""
    profiler.run(1)
    calm = [False]
    for _ in range(runs):
        before = switches()
        profiler.run(1)
        calm.append(switches() == before)
    return calm


def _paired(runs: list[Any], flags: list[bool]) -> list[tuple[Any, bool]]:
    """Runs with whether they were undisturbed; a profiler may leave out or add one at the start."""
    count = min(len(runs), len(flags))
    return list(zip(runs[-count:], flags[-count:], strict=True))


def _kept(samples: list[tuple[Any, bool]]) -> list[Any]:
    """The undisturbed samples, or all where fewer than a third are."""
    calm = [value for value, good in samples if good]
    return calm if 3 * len(calm) >= len(samples) else [value for value, _ in samples]


def _by_layer(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    names = sorted({name for run in runs for name in run})
    return {name: [round(run.get(name, 0.0), 3) for run in runs] for name in names}
