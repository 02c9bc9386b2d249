"""The CI gate: whether an artifact has become slower than its baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from prunekit.core.run_folder import DENSE, ONNX
from prunekit.core.target import Environment, Target
from prunekit.measuring.bench import Verdict, check_ratio, check_regression
from prunekit.networks.saved import is_sparse
from prunekit.pipeline.artifacts import open_artifact
from prunekit.report import Report, SparsityReport
from prunekit.runtimes import runtime_for
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """How much slower is too slow (a share), how sure to be, and how long to measure."""

    threshold: float = 0.05
    confidence: float = 0.99
    max_seconds: float = 60.0


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
