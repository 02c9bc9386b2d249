"""A table that comes with the package, brought to this device by a few networks."""

from __future__ import annotations

from pathlib import Path

from prunekit.core.run_folder import TRANSFER_JOURNAL, RunFolder
from prunekit.latency import LatencyTable
from prunekit.latency.shipped import shipped_tables
from prunekit.latency.transfer import check_transfer
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.job import Job
from prunekit.pipeline.table import make_table
from prunekit.profiling import HarvestPlan
from prunekit.profiling.transferring import TRANSFER_NETS
from prunekit.support.errors import PrunekitError
from prunekit.support.progress import say

ROUNDS = 2
"""Of every network."""


def shipped_table(
    job: Job, folder: RunFolder, comparison: DenseComparison, path: Path
) -> LatencyTable | None:
    """The shipped table of the job's layers, calibrated here and written to ``path``.

    None, and nothing written, where there is none of these layers for a processor with the same
    instruction sets, or where its error here is larger than a profile's may be.
    """
    origin = _origin(job)
    if origin is None:
        return None
    recipe = job.recipe
    say(f"note: the table of {origin.models[0]} that comes with prunekit is calibrated to this one")
    table = make_table(
        *(job.module, job.graph, job.example, job.target, path),
        journal=folder / TRANSFER_JOURNAL,
        plan=HarvestPlan(
            nets=TRANSFER_NETS,
            rounds=ROUNDS,
            max_seconds=recipe.profile_seconds,
            seed=recipe.seed,
        ),
        granularity=recipe.granularity,
        name=recipe.model,
        resume=False,
        origin=origin,
        dense=comparison.exact,
    )
    if table.calibration.mape <= recipe.profile_error:
        return table
    say("note: it is of a device too different from this one; profiling")
    path.unlink()
    return None


def _origin(job: Job) -> LatencyTable | None:
    """The first shipped table that has all layers of the job, of the same instruction sets."""
    here = job.runtime.environment(job.target)
    granularity = job.recipe.granularity or job.runtime.granularity(job.target)
    for path in shipped_tables():
        if not path.name.partition("-")[2].startswith(f"{job.target.runtime}_"):
            continue
        try:
            table = LatencyTable.load(path)
            if table.environment.isa != here.isa or not here.isa:
                continue
            check_transfer(table, job.graph, job.target, granularity)
        except PrunekitError:  # of other layers, a batch or a precision of its own
            continue
        return table
    return None
