"""From a slim network to files that were timed; a miss lands again where nothing was trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.run_folder import ONNX, PLAN, RunFolder
from prunekit.measuring.bench import BenchResult
from prunekit.networks.saved import save
from prunekit.networks.slimming import slim
from prunekit.pipeline.against_dense import Stopwatch
from prunekit.pipeline.job import Job
from prunekit.pipeline.landing import BAND, MAX_AGAIN, Again, Landing, land_again
from prunekit.support.progress import say


@dataclass(frozen=True)
class Delivered:
    """The network in the run folder, the plan it is of, and what its file takes."""

    small: nn.Module
    landing: Landing
    timed: BenchResult


@dataclass(frozen=True)
class Delivery:
    """Writes the networks of one run for the target and times what was written."""

    job: Job
    folder: RunFolder
    watch: Stopwatch
    target: float
    """The share of the dense latency that was asked for."""

    def deliver(self, small: nn.Module, landing: Landing) -> Delivered:
        """Save and export ``small``, and time what was exported."""
        timed = self.watch.final_time(small, self.write(small, landing), self.target)
        return Delivered(small, landing, timed)

    def write(self, small: nn.Module, landing: Landing) -> Artifact:
        """Save and export ``small``."""
        run, model, plan = self.folder.path, self.job.model, landing.allocation.plan
        save(run, small, plan, model.spec, model.arguments, self.job.graph.input_shapes)
        return self.watch.export(small, run / ONNX, PLAN)

    def ratio(self, found: Delivered) -> float:
        """What the file takes, in units in which the limit is the target."""
        return self.watch.against_limit(found.timed, self.target).ratio

    def settle(self, found: Delivered, again: Again) -> Delivered:
        """Land ``again`` by what the exported file takes, for networks that were not trained since.

        Files are measured for longer than plans on the way, and what that differs by is taken for
        all of those. A miss is followed by a smaller network; one further below the limit than the
        band by a larger one, if that meets it too.
        """
        for _ in range(MAX_AGAIN):
            final, landing = self.ratio(found), found.landing
            low = final < self.target - BAND
            if final <= self.target and not low:
                break
            way = "higher" if low else "lower"
            share = final / self.target
            say(f"the exported network takes {share:.1%} of the limit; landing again, {way}")
            other = land_again(landing, final, again)
            if other.allocation.widths == landing.allocation.widths:
                break
            module = slim(self.job.module, other.allocation.plan).eval()
            candidate = self.deliver(module, other)
            if low and self.ratio(candidate) > self.target:
                self.write(found.small, landing)
                return replace(found, landing=replace(landing, attempts=other.attempts))
            found = candidate
        return found
