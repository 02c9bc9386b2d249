"""``prunekit check``."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
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
    print_text,
    set_verbosity,
)

if TYPE_CHECKING:
    from prunekit.measuring.bench import Verdict

STATUS = {"pass": 0, "fail": 1, "inconclusive": 3}

ArtifactToCheck = Annotated[
    str | None,
    typer.Argument(
        metavar="[ARTIFACT]", help="What to check; default: the model.onnx beside a report."
    ),
]
Baseline = Annotated[
    Path | None, option("An artifact, or the report.json of the run it is from.", "--baseline")
]
Threshold = Annotated[
    str, option("How much slower is too slow: 5% or 0.05.", "--threshold", metavar="SHARE")
]
Confidence = Annotated[
    float, option("How sure a pass or a failure is.", "--confidence", min=0.5, max=0.9999)
]


def check(
    context: typer.Context,
    artifact: ArtifactToCheck = None,
    baseline: Baseline = None,
    threshold: Threshold = "5%",
    confidence: Confidence = 0.99,
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
        _refuse_what_a_report_says(context, base)
        verdict = check_against_report(baseline, artifact, limits)
    elif artifact is None:
        raise UsageError("check against an artifact needs the ARTIFACT to check")
    else:
        where = Target.parse(target, batch=batch, threads=threads)
        verdict = check_against_artifact(baseline, artifact, where, limits, base)
    _show(verdict, json)
    return STATUS[verdict.outcome]


def _refuse_what_a_report_says(context: typer.Context, base: str | None) -> None:
    from prunekit.support.errors import UsageError

    for flag in ("target", "batch", "threads"):
        source = context.get_parameter_source(flag)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{flag} does not go with a report, which has its own target")
    if base is not None:
        raise UsageError("--base does not go with a report, whose files say all; leave it out")


def _show(verdict: Verdict, json: bool) -> None:
    if not json:
        print_text(f"{verdict.outcome}: {verdict.reason}")
        return
    ratio = verdict.ratio
    print_json(
        {
            "outcome": verdict.outcome,
            "ratio": ratio.ratio,
            "ratio_ci": [ratio.low, ratio.high],
            "confidence": ratio.confidence,
            "threshold": verdict.threshold,
            "more_seconds": verdict.more_seconds if isfinite(verdict.more_seconds) else None,
            "reason": verdict.reason,
        }
    )
