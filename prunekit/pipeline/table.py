"""Where the latency table of a run comes from: a file, an earlier part of the run, or a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph
from prunekit.core.run_folder import rounds_in
from prunekit.core.target import Environment, Target
from prunekit.latency import LatencyTable
from prunekit.latency.shipped import find_table
from prunekit.profiling import HarvestPlan, ProfileRequest, differences, grid, transfer
from prunekit.profiling.differences import LEAST_NETS
from prunekit.profiling.harvest import harvest_request
from prunekit.profiling.journal import damaged, head_of, refuse_other
from prunekit.profiling.locking import locked
from prunekit.runtimes import runtime_for
from prunekit.support.errors import NoLayerTimesError, UsageError
from prunekit.support.progress import say

AUTO = ("harvest", "differences")
SOURCES = {"harvest": harvest_request, "grid": grid, "differences": differences}
"""Where a table's layer times come from; ``auto`` is harvest, and differences where that fails."""


def load_table(path: str | Path, graph: ChannelGraph, target: Target) -> LatencyTable:
    """A table from a file, refused unless it is of this target, this device and this model.

    A name that is no file is looked for among the tables that come with the package.
    """
    table = LatencyTable.load(find_table(path))
    check_table(table, graph, target)
    return table


def check_table(table: LatencyTable, graph: ChannelGraph, target: Target) -> None:
    """Refuse a table of another target, another device or another model."""
    table.check(graph, target, runtime_for(target).environment(target))


def finished_table(
    path: Path,
    graph: ChannelGraph,
    target: Target,
    plan: HarvestPlan,
    granularity: int | None,
    source: str,
    origin: LatencyTable | None,
) -> LatencyTable:
    """The table of a profile that has ended already, refused if it had other settings."""
    table = load_table(path, graph, target)
    protocol = table.protocol
    environment = None if origin is None else origin.origin or origin.environment
    was: dict[str, object] = {
        "model": " ".join(table.models),
        "transfer": _device_of(table.origin),
        "granularity": table.granularity,
        "seed": protocol.seed,
        "shards": [shard.split()[0] for shard in protocol.shards],
    }
    now: dict[str, object] = {
        "model": graph.fingerprint,
        "transfer": _device_of(environment),
        "granularity": granularity or table.granularity,
        "seed": plan.seed,
        "shards": [] if plan.whole else ["{}/{}".format(*plan.shard)],
    }
    if origin is not None:  # its models come with the layers
        del was["model"], now["model"]
    elif source != "auto" or protocol.source not in AUTO:
        was["source"], now["source"] = protocol.source, source
    if protocol.asked is not None:
        least = LEAST_NETS if protocol.source == "differences" else 0
        was |= {"nets": protocol.asked[0], "rounds": protocol.asked[1]}
        now |= {"nets": max(plan.nets, least), "rounds": plan.rounds}
    refuse_other(f"latency table {path}", was, now)
    return table


def _device_of(environment: Environment | None) -> str | None:
    if environment is None:
        return None
    return f"{environment.device_name}, {environment.runtime_version}, {environment.created}"


def check_prunable(graph: ChannelGraph, name: str) -> None:
    """Raise UsageError where nothing can go."""
    if not any(group.prunable for group in graph.groups):
        reasons = sorted({group.reason for group in graph.groups})
        raise UsageError(f"{name} has no prunable channels: {'; '.join(reasons[:3])}")


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
    origin: LatencyTable | None = None,
    source: str = "auto",
    dense: Artifact | None = None,
) -> LatencyTable:
    """Profile ``module`` and write the table to ``path``; the journal goes when it is there.

    ``source`` is one of :data:`SOURCES`. With ``origin`` that table is transferred to the target
    here instead. ``dense`` is the module's ONNX file in fp32, where there is one. Of several
    processes that write the same table all but the first are refused, as long as it works and,
    without ``overwrite`` or ``resume``, when it is done.
    """
    check_prunable(graph, name)
    request = ProfileRequest(
        *(module, graph, example, target, plan),
        name=name,
        granularity=granularity,
        journal=journal,
        resume=resume,
        dense=dense,
    )
    with locked(journal.with_name(journal.name + ".lock"), path):
        if path.exists() and not (overwrite or resume):
            raise UsageError(f"output {path} was written meanwhile; use --overwrite or another -o")
        try:
            table = _profile(source, request) if origin is None else transfer(request, origin)
            table.save(path)
        except BaseException:
            if not rounds_in(journal):
                journal.unlink(missing_ok=True)
            raise
        journal.unlink(missing_ok=True)
    by = "calibrated by" if table.apart else "from"
    say(
        f"latency table: {len(table.entries)} layer shapes {by} {table.protocol.nets} networks, "
        f"{table.protocol.rounds} rounds ({table.protocol.stopped}); {table.calibration}"
    )
    return table


def _profile(source: str, request: ProfileRequest) -> LatencyTable:
    journal, plan = request.journal, request.plan
    if source == "auto" and request.resume and journal is not None:
        source = str(head_of(journal).get("source", source))  # what it was started with
        if source != "auto" and source not in SOURCES:
            raise damaged(journal, 1)
    if source != "auto":
        return SOURCES[source](request)
    try:
        return harvest_request(request)
    except NoLayerTimesError as error:
        if not plan.whole:
            raise
        count = max(plan.nets, LEAST_NETS)
        say(
            f"note: {error.args[0].partition(';')[0]}; differences of whole networks are taken, "
            f"{count} of them"
        )
        return differences(replace(request, resume=False))
