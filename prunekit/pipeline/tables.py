"""Where the latency table of a run comes from: a file, an earlier part of the run, or a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunekit.errors import UsageError
from prunekit.graph import ChannelGraph
from prunekit.latency import LatencyTable
from prunekit.pipeline.folder import rounds_in
from prunekit.profiling import HarvestPlan, harvest, transfer
from prunekit.profiling.locking import locked
from prunekit.progress import say
from prunekit.runtimes import runtime_for
from prunekit.target import Target


def load_table(path: str | Path, graph: ChannelGraph, target: Target) -> LatencyTable:
    """A table from a file, refused unless it is of this target, this device and this model."""
    table = LatencyTable.load(path)
    table.check(graph, target, runtime_for(target).environment(target))
    return table


def make_table(
    module: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target,
    path: Path,
    *,
    journal: Path,
    plan: HarvestPlan,
    granularity: int | None,
    name: str,
    resume: bool,
    overwrite: bool = True,
    source: LatencyTable | None = None,
) -> LatencyTable:
    """Profile ``module`` and write the table to ``path``; the journal goes when it is there.

    With ``source`` that table is transferred to the target here. Of several processes that write
    the same table all but the first are refused, as long as it works and, without ``overwrite`` or
    ``resume``, when it is done.
    """
    if not any(group.prunable for group in graph.groups):
        reasons = sorted({group.reason for group in graph.groups})
        raise UsageError(f"{name} has no prunable channels: {'; '.join(reasons[:3])}")
    settings: dict[str, Any] = {
        "plan": plan,
        "name": name,
        "granularity": granularity,
        "journal": journal,
        "resume": resume,
    }
    with locked(journal.with_name(journal.name + ".lock"), path):
        if path.exists() and not (overwrite or resume):
            raise UsageError(f"output {path} was written meanwhile; use --overwrite or another -o")
        try:
            table = (
                harvest(module, graph, example, target, **settings)
                if source is None
                else transfer(module, graph, example, target, source, **settings)
            )
            table.save(path)
        except BaseException:
            if not rounds_in(journal):
                journal.unlink(missing_ok=True)
            raise
        journal.unlink(missing_ok=True)
    how = "from" if source is None else "calibrated by"
    say(
        f"latency table: {len(table.entries)} layer shapes {how} {table.protocol.nets} networks, "
        f"{table.protocol.rounds} rounds ({table.protocol.stopped}); {table.calibration}"
    )
    return table
