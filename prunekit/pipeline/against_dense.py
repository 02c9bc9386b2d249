"""What a run measures: always against the dense network, interleaved, on the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.budget import Budget
from prunekit.core.plan import ChannelPlan
from prunekit.core.run_folder import CANDIDATE, DENSE, EXACT, RunFolder
from prunekit.core.timing import PairedRatio
from prunekit.exporting import export, live_artifact
from prunekit.exporting.candidate import CandidateBuilder
from prunekit.measuring.bench import BenchResult, bench
from prunekit.pipeline.job import Job
from prunekit.support.errors import UsageError
from prunekit.support.progress import say

FINAL = 2.5
"""The last measurement takes this many times as long as one of the landing."""
LONGER = 3.0
"""And this many times longer where the interval spans the target."""


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

    def measure(self, plan: ChannelPlan, times: float = 1.0) -> BenchResult:
        """The dense network and ``plan``'s, weights untrained, timed against each other."""
        job = self.job
        builder = CandidateBuilder(
            *(job.module, job.example, job.target, job.runtime), self.exact, job.batches
        )
        candidate = builder.build(plan, self.folder / CANDIDATE)
        return self.time(candidate, times * self.seconds)

    def landing_ratio(self, plan: ChannelPlan, target: float, times: float = 1.0) -> PairedRatio:
        """What the landing decides on, measured longer while the interval spans the target.

        An absolute budget is decided on milliseconds: the pruned network's, as a share of the
        dense network's at which the limit was set.
        """
        timed = self.measure(plan, times)
        ratio = self.against_limit(timed, target)
        if ratio.low <= target <= ratio.high:
            longer = self.time(timed.artifacts[1], LONGER * times * self.seconds)
            ratio = self.against_limit(longer, target)
        return ratio

    def confirmed_ratio(self, plan: ChannelPlan, target: float) -> PairedRatio:
        """The same, measured as long as the final network will be."""
        return self.landing_ratio(plan, target, FINAL)

    def against_limit(self, timed: BenchResult, target: float) -> PairedRatio:
        """The measured ratio, in units in which the limit is ``target``."""
        ratio = timed.ratios[0]
        if self.budget.relative:
            return ratio
        pruned = timed.measurements[1]
        low, high = pruned.interval(ratio.confidence)
        share = target / self.budget.value
        return replace(ratio, ratio=pruned.median_ms * share, low=low * share, high=high * share)

    def time(self, other: Artifact, seconds: float) -> BenchResult:
        """The dense network and ``other``, timed interleaved."""
        return bench(
            [self.dense, other], self.job.target, max_seconds=seconds, precision_goal=0.005
        )

    def final_time(self, small: nn.Module, onnx: Artifact, target: float) -> BenchResult:
        """What the report says; measured longer when the interval leaves the answer open."""
        pruned = self.timed_form(small, onnx)
        timed = self.time(pruned, FINAL * self.seconds)
        ratio = self.against_limit(timed, target)
        if ratio.low <= target <= ratio.high:
            say("the interval spans the target; measuring longer")
            timed = self.time(pruned, LONGER * FINAL * self.seconds)
        return timed

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
