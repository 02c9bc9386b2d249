"""From a slim network to files that were timed; a miss lands again where nothing was trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan
from prunekit.core.ratio import PairedRatio
from prunekit.core.run_folder import ONNX, PLAN
from prunekit.measuring.bench import BenchResult
from prunekit.networks.saved import save
from prunekit.pipeline.examples import described
from prunekit.pipeline.landing import LandFrom, Landing, confirm
from prunekit.pipeline.methods.base import Pruned
from prunekit.pipeline.repairing import slimmed
from prunekit.pipeline.run import Run
from prunekit.report.schema import RepairPart


@dataclass(frozen=True)
class Delivered:
    """The network in the run folder, the plan it is of, and what its file takes."""

    small: nn.Module
    landing: Landing
    timed: BenchResult
    repair: RepairPart | None = None


def deliver(run: Run, pruned: Pruned, target: float) -> Delivered:
    """Save and export what was pruned, and time the file.

    Networks that were not trained land again where the file, which is measured for longer than
    plans on the way, misses the target or does not use it up.
    """
    if pruned.land_from is not None:
        return _confirmed(run, pruned, pruned.land_from, target)
    timed = _write_and_time(run, pruned.small, pruned.landing.allocation.plan, target)
    return Delivered(pruned.small, pruned.landing, timed, pruned.repair)


def _confirmed(run: Run, pruned: Pruned, land_from: LandFrom, target: float) -> Delivered:
    """The largest network whose file meets the target."""
    tried: list[tuple[ChannelPlan, nn.Module, BenchResult, RepairPart | None]] = []

    def measure(plan: ChannelPlan) -> PairedRatio:
        small, repair = slimmed(run, plan) if tried else (pruned.small, pruned.repair)
        timed = _write_and_time(run, small.eval(), plan, target)
        tried.append((plan, small, timed, repair))
        return run.comparison.against_limit(timed, target)

    landing = confirm(
        pruned.landing,
        measure,
        land_from,
        target,
        run.job.recipe.confidence,
        subject="the exported network",
    )
    chosen = landing.allocation.plan
    plan, small, timed, repair = next(entry for entry in tried if entry[0] == chosen)
    if tried[-1][0] != plan:  # the files are of a larger one, which missed
        _write(run, small, plan)
    return Delivered(small, landing, timed, repair)


def _write_and_time(run: Run, small: nn.Module, plan: ChannelPlan, target: float) -> BenchResult:
    return run.comparison.final_time(small, _write(run, small, plan), target)


def _write(run: Run, small: nn.Module, plan: ChannelPlan) -> Artifact:
    """Save and export ``small``."""
    job = run.job
    spec, arguments = job.model.spec, job.model.arguments
    shapes, inputs = job.graph.input_shapes, described(job.example)
    save(run.folder.path, small, plan, spec, arguments, shapes, inputs)
    return run.comparison.export(small, run.folder / ONNX, PLAN)
