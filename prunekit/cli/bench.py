"""``prunekit bench``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import (
    Base,
    Batch,
    Json,
    Quiet,
    Seconds,
    TargetText,
    Threads,
    Verbose,
    option,
    print_json,
    print_table,
    set_verbosity,
)

if TYPE_CHECKING:
    from prunekit.measuring.bench import BenchResult

Artifacts = Annotated[
    list[str], typer.Argument(metavar="A [B ...]", help="Artifacts or run folders.")
]
Seed = Annotated[int, option("Seed of the order of runs.", min=0)]


def bench(
    artifacts: Artifacts,
    target: TargetText = "onnxruntime:cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    base: Base = None,
    max_seconds: Seconds = 20.0,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Time artifacts interleaved in one run; each ratio to the first comes with its interval."""
    set_verbosity(verbose, quiet)
    from prunekit.core.target import Target
    from prunekit.measuring.bench import bench as measure
    from prunekit.pipeline.check import open_artifact

    where = Target.parse(target, batch=batch, threads=threads)
    opened = [open_artifact(path, where, base) for path in artifacts]
    result = measure(opened, where, max_seconds=max_seconds, seed=seed)
    (_print_json if json else _print)(artifacts, result)


def _print_json(paths: list[str], result: BenchResult) -> None:
    ratios = [None, *result.ratios]
    print_json(
        {
            "target": asdict(result.target),
            "environment": asdict(result.environment),
            "artifacts": [
                {
                    "path": path,
                    "median_ms": times.median_ms,
                    "p90_ms": times.p90_ms,
                    "p99_ms": times.p99_ms,
                    "interval_ms": list(times.interval()),
                    "samples": len(times.samples_ms),
                    "ratio": None if ratio is None else ratio.ratio,
                    "ratio_ci": None if ratio is None else [ratio.low, ratio.high],
                }
                for path, times, ratio in zip(paths, result.measurements, ratios, strict=True)
            ],
        }
    )


def _print(paths: list[str], result: BenchResult) -> None:
    ratios = [None, *result.ratios]
    print_table(
        f"{result.target.describe()} on {result.environment.device_name}",
        ("artifact", "median (ms)", "95 % interval", "p90", "p99", "runs", "ratio to the first"),
        [
            (
                path,
                f"{times.median_ms:.3f}",
                "[{:.3f}, {:.3f}]".format(*times.interval()),
                f"{times.p90_ms:.3f}",
                f"{times.p99_ms:.3f}",
                str(len(times.samples_ms)),
                "" if ratio is None else str(ratio),
            )
            for path, times, ratio in zip(paths, result.measurements, ratios, strict=True)
        ],
    )
