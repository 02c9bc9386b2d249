"""What a run measures: always against the dense network, interleaved, on the target."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.budget import Budget
from prunekit.core.estimate import Estimate
from prunekit.core.plan import ChannelPlan
from prunekit.core.ratio import PairedRatio
from prunekit.core.run_folder import CANDIDATE, DENSE, EXACT, RunFolder
from prunekit.exporting import export, live_artifact
from prunekit.exporting.candidate import CandidateBuilder
from prunekit.measuring.bench import BenchResult, bench
from prunekit.measuring.sessions import Sessions
from prunekit.pipeline.job import Job
from prunekit.pipeline.landing import INTERVAL
from prunekit.support.errors import UsageError
from prunekit.support.stopwatch import stages

LONGER = 3.0
"""A measurement goes on for so many times its usual limit while it leaves the answer open."""
FINAL = 2.5
"""The last one may take this many times as long as one of the landing."""
PRECISION = 0.01
"""Half of the interval that a measurement should come down to, as a share."""
FINEST = 0.004
"""And that it may come down to where the answer is open."""
SURE = 0.995
"""An answer as sure as this, either way, needs no more sessions."""


class DenseComparison:
    """Times networks of one run against its dense one and against its budget."""

    def __init__(self, job: Job, folder: RunFolder) -> None:
        self.job, self.folder = job, folder
        self.budget = Budget.parse(job.recipe.target_latency)
        self.seconds = job.recipe.measure_seconds
        self._dense: Artifact | None = None
        self.exact: Artifact | None = None
        """The dense network in fp32, which narrow ones are cut from."""

    @property
    def dense(self) -> Artifact:
        """The dense network as it is timed (on rank 0)."""
        if self._dense is None:
            raise UsageError("the dense network is exported on rank 0 only")
        return self._dense

    def export_dense(self) -> None:
        """``dense.onnx``, the reference every ratio is taken against."""
        artifact = self.export(self.job.module, self.folder / DENSE)
        self._dense = self.timed_form(self.job.module, artifact)
        self.exact = artifact
        if self.job.file_precision != "fp32":
            exact = self.folder / EXACT
            self.exact = export(self.job.module, self.job.example, exact)

    def export(self, module: nn.Module, path: Path, plan: str | None = None) -> Artifact:
        """The ONNX file of a network in the target's precision."""
        job = self.job
        with stages.stage("exporting"):
            return export(
                module,
                job.example,
                path,
                job.file_precision,
                plan,
                batches=job.batches,
                runtime=job.target.runtime,
            )

    def timed_form(self, module: nn.Module, onnx: Artifact) -> Artifact:
        """The ONNX file, or the live module for runtimes that run those."""
        if self.job.runtime.artifact_format == "module":
            return live_artifact(module, self.job.example)
        return onnx

    def measure(self, plan: ChannelPlan, target: float, times: float = 1.0) -> BenchResult:
        """The dense network and ``plan``'s, weights untrained, timed against each other."""
        job = self.job
        builder = CandidateBuilder(
            *(job.module, job.example, job.target, job.runtime), self.exact, job.batches
        )
        with stages.stage("exporting"):
            candidate = builder.build(plan, self.folder / CANDIDATE)
        return self.time(candidate, target, times * self.seconds, surely=False)

    def landing_ratio(self, plan: ChannelPlan, target: float, times: float = 1.0) -> PairedRatio:
        """What the landing decides on, measured longer while the answer is open.

        An absolute budget is decided on milliseconds: the pruned network's, as a share of the
        dense network's at which the limit was set.
        """
        return self.against_limit(self.measure(plan, target, times), target)

    def confirmed_ratio(self, plan: ChannelPlan, target: float) -> PairedRatio:
        """The same, measured as long as the final network will be."""
        return self.landing_ratio(plan, target, FINAL)

    def against_limit(self, timed: BenchResult, target: float) -> PairedRatio:
        """The measured ratio, in units in which the limit is ``target``."""
        (ratio,) = timed.ratios
        if self.budget.relative:
            return ratio
        known = timed.measurements[1].estimate(timed.lost)
        milliseconds = PairedRatio.of(known, ratio.confidence, ratio.rounds, ratio.sessions)
        return milliseconds.scaled(target / self.budget.value)

    def _known(self, sessions: Sessions, target: float) -> Estimate:
        """What the sessions so far say, in units in which the limit is ``target``."""
        if self.budget.relative:
            return sessions.ratio(1, INTERVAL).estimate
        known = sessions.measurement(1).estimate(sessions.lost)
        return known.scaled(target / self.budget.value)

    def time(self, other: Artifact, target: float, seconds: float, *, surely: bool) -> BenchResult:
        """The dense network and ``other``, until it is as good as certain which side it is on.

        Or, once the ratio is known well, until it is sure enough or cannot become so. With
        ``surely`` it is known well in any case, and sure enough is nearly certain.
        """
        confidence = SURE if surely else self.job.recipe.confidence

        def enough(sessions: Sessions) -> bool:
            known = self._known(sessions, target)
            below = known.probability_below(target)
            certain = max(below, 1 - below) >= SURE
            if certain and not surely:
                return True
            if sessions.seconds < seconds and not sessions.settled(PRECISION, INTERVAL):
                return False
            return certain or below >= confidence or known.could_be_below(target) < confidence

        return bench(
            [self.dense, other],
            self.job.target,
            max_seconds=LONGER * seconds,
            precision_goal=FINEST,
            confidence=INTERVAL,
            enough=enough,
        )

    def final_time(self, small: nn.Module, onnx: Artifact, target: float) -> BenchResult:
        """What the report says."""
        pruned = self.timed_form(small, onnx)
        return self.time(pruned, target, FINAL * self.seconds, surely=True)

    def target_ratio(self) -> float:
        """The budget as a share of the dense latency; absolute ones need the dense time."""
        budget = self.budget
        if budget.relative:
            return budget.value
        measured = bench([self.dense], self.job.target, max_seconds=self.seconds).measurements[0]
        ratio = budget.limit(measured.median_ms) / measured.median_ms
        if ratio >= 1:
            raise UsageError(
                f"{budget} is met already: the dense network takes {measured.median_ms:.3f} ms"
            )
        return ratio
