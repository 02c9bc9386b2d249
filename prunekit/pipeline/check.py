"""The CI gate: whether an artifact, or what a path stands for, has become slower than before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan
from prunekit.core.run_folder import DENSE, ONNX, PLAN, is_run, is_sparse
from prunekit.core.target import Environment, Target
from prunekit.measuring.bench import Limits, Verdict, check_ratio, check_regression
from prunekit.report import Report, SparsityReport
from prunekit.runtimes import runtime_for
from prunekit.support.errors import FileError, UsageError


def open_artifact(path: str | Path, target: Target, base: str | None = None) -> Artifact:
    """The artifact at ``path`` in the form ``target``'s runtime takes; a run folder has both.

    ``base`` is the dense model of a run that was made from the user's own code.
    """
    runtime = runtime_for(target)
    if not is_run(path):
        if Path(path).is_dir():
            raise FileError(f"{path} is a folder without {PLAN}, not a finished run")
        return Artifact.of_file(path)
    if runtime.artifact_format == "onnx":
        return Artifact.of_file(Path(path) / ONNX)
    # only a live network needs PyTorch: a file's gate takes a fraction of the time without it
    from prunekit.exporting import live_artifact
    from prunekit.networks.saved import load, saved_input
    from prunekit.pipeline.examples import example_input

    plan = ChannelPlan.load(Path(path) / PLAN)
    if plan.base is None or not plan.base.input_shapes:
        raise UsageError(f"{path} does not say its input shape; time its model.onnx instead")
    example = example_input(saved_input(path) or "")
    return replace(live_artifact(load(path, base), example), path=str(path))


def check_against_artifact(
    baseline: Path,
    artifact: str | Path,
    target: Target,
    limits: Limits,
    base: str | None = None,
) -> Verdict:
    """Both timed interleaved; ``base`` is the dense model of run folders of the user's own code."""
    before, now = (open_artifact(path, target, base) for path in (baseline, artifact))
    return check_regression(before, now, target, **asdict(limits))


def check_against_report(path: Path, artifact: str | Path | None, limits: Limits) -> Verdict:
    """The ratio to the run's dense network, against the ratio its report recorded.

    A ratio means something on the device it was measured on only; elsewhere it is refused. Of a
    sparse run it is the ratio on the first of its targets.
    """
    recorded = _recorded(path)
    run, target = path.parent, recorded.target
    runtime = runtime_for(target)
    if gap := recorded.environment.difference(runtime.environment(target)):
        raise UsageError(
            f"{path} was measured elsewhere: {gap} here; compare with an artifact "
            f"(--baseline {run / ONNX}), or measure the run anew on this device"
        )
    if runtime.artifact_format != "onnx":
        raise UsageError(f"check against a report needs an ONNX target, not {target}")
    dense = open_artifact(run / DENSE, target)
    if dense.sha256 != recorded.dense_sha256:
        raise UsageError(
            f"{run / DENSE} is not the file that {path} was measured with; "
            "make the run anew, or compare with an artifact (--baseline FILE.onnx)"
        )
    candidate = open_artifact(artifact or run / ONNX, target)
    return check_ratio(
        dense,
        candidate,
        recorded.ratio,
        target,
        recorded_ci=recorded.ratio_ci,
        recorded_confidence=recorded.confidence,
        **asdict(limits),
    )


@dataclass(frozen=True)
class _Recorded:
    """What a report says of its network's latency relative to the dense one's."""

    target: Target
    environment: Environment
    dense_sha256: str
    ratio: float
    ratio_ci: tuple[float, float]
    confidence: float


def _recorded(path: Path) -> _Recorded:
    if not is_sparse(path.parent):
        report = Report.load(path)
        latency, dense = report.latency, report.digests["dense"]
        return _Recorded(
            *(report.target, report.environment, dense),
            *(latency.ratio, latency.ratio_ci, latency.confidence),
        )
    sparse = SparsityReport.load(path)
    if not sparse.speed:
        raise UsageError(
            f"{path} has no measured latency; compare with an artifact "
            f"(--baseline {path.parent / ONNX})"
        )
    first, dense = sparse.speed[0], sparse.digests["dense"]
    return _Recorded(
        *(first.target, first.environment, dense),
        *(first.ratio, first.ratio_ci, first.confidence),
    )
