"""``prunekit bench``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

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
    print_json,
    print_table,
    set_verbosity,
)


def bench(
    artifacts: Annotated[
        list[str], typer.Argument(metavar="A [B ...]", help="Artifacts or run folders.")
    ],
    target: TargetText = "onnxruntime:cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    base: Base = None,
    max_seconds: Seconds = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of runs.")] = 0,
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
    ratios = [None, *result.ratios]
    if json:
        print_json(
            {
                "target": asdict(where),
                "environment": asdict(result.environment),
                "artifacts": [
                    {
                        "path": path,
                        "median_ms": m.median_ms,
                        "p90_ms": m.p90_ms,
                        "p99_ms": m.p99_ms,
                        "interval_ms": list(m.interval()),
                        "samples": len(m.samples_ms),
                        "ratio": None if r is None else r.ratio,
                        "ratio_ci": None if r is None else [r.low, r.high],
                    }
                    for path, m, r in zip(artifacts, result.measurements, ratios, strict=True)
                ],
            }
        )
        return
    print_table(
        f"{where.describe()} on {result.environment.device_name}",
        ("artifact", "median (ms)", "95 % interval", "p90", "p99", "runs", "ratio to the first"),
        [
            (
                path,
                f"{m.median_ms:.3f}",
                "[{:.3f}, {:.3f}]".format(*m.interval()),
                f"{m.p90_ms:.3f}",
                f"{m.p99_ms:.3f}",
                str(len(m.samples_ms)),
                "" if r is None else str(r),
            )
            for path, m, r in zip(artifacts, result.measurements, ratios, strict=True)
        ],
    )
