"""``prunekit check``."""

from __future__ import annotations

from pathlib import Path
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
    print_text,
    set_verbosity,
)

STATUS = {"pass": 0, "fail": 1, "inconclusive": 3}


def check(
    context: typer.Context,
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARTIFACT]", help="What to check; default: the model.onnx beside a report."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="An artifact, or the report.json of the run it is from."),
    ] = None,
    threshold: Annotated[
        str, typer.Option(metavar="SHARE", help="How much slower is too slow: 5% or 0.05.")
    ] = "5%",
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="How sure a pass or a failure is.")
    ] = 0.99,
    target: TargetText = "onnxruntime:cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    base: Base = None,
    max_seconds: Seconds = 60.0,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Fail (exit 1) on a slow-down that is significant and over the threshold; 3: cannot tell.

    Against an artifact, the two are timed interleaved. Against a report.json, the artifact is
    timed interleaved with the run's dense.onnx on the report's target, and the ratio compared
    with the recorded one.
    """
    set_verbosity(verbose, quiet)
    from prunekit.core.target import Target
    from prunekit.measuring.bench import Limits
    from prunekit.pipeline.check import check_against_artifact, check_against_report
    from prunekit.support.errors import UsageError
    from prunekit.support.parsing import parse_share

    if baseline is None:
        raise UsageError("check needs --baseline FILE, an artifact or a report.json")
    limits = Limits(parse_share(threshold, "--threshold"), confidence, max_seconds)
    if baseline.suffix == ".json":
        for flag in ("target", "batch", "threads"):
            source = context.get_parameter_source(flag)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(f"--{flag} does not go with a report, which has its own target")
        if base is not None:
            raise UsageError("--base does not go with a report, whose files say all; leave it out")
        verdict = check_against_report(baseline, artifact, limits)
    elif artifact is None:
        raise UsageError("check against an artifact needs the ARTIFACT to check")
    else:
        where = Target.parse(target, batch=batch, threads=threads)
        verdict = check_against_artifact(baseline, artifact, where, limits, base)
    if json:
        ratio = verdict.ratio
        print_json(
            {
                "outcome": verdict.outcome,
                "ratio": ratio.ratio,
                "ratio_ci": [ratio.low, ratio.high],
                "confidence": ratio.confidence,
                "threshold": verdict.threshold,
                "reason": verdict.reason,
            }
        )
    else:
        print_text(f"{verdict.outcome}: {verdict.reason}")
    return STATUS[verdict.outcome]
