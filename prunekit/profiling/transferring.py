"""Transfer: a few whole networks calibrate another device's table to this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.graph import ChannelGraph
from prunekit.core.target import Target
from prunekit.latency import LatencyTable
from prunekit.latency.transfer import check_transfer, layers_us, transferred
from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.collecting import collect
from prunekit.profiling.harvest import networks_of, protocol
from prunekit.profiling.measuring import HarvestPlan, speeds
from prunekit.runtimes import runtime_for

TRANSFER_NETS = 5
"""The dense network, the smallest and three between: two numbers are fitted to them."""


def transfer(
    model: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target | str,
    table: LatencyTable,
    *,
    plan: HarvestPlan | None = None,
    name: str = "",
    granularity: int | None = None,
    journal: Path | None = None,
    resume: bool = False,
) -> LatencyTable:
    """``table`` calibrated to the device of ``target`` here by end-to-end runs of a few networks.

    No layer is profiled: ``table`` must be of the same runtime, precision, batch and threads, have
    all layers of ``model``, and be of a device with the same granularity (``granularity`` here if
    given). Journal and ``resume`` are as in :func:`prunekit.profiling.harvest.harvest`.
    """
    wanted = plan or HarvestPlan(nets=TRANSFER_NETS)
    target = Target.of(target)
    runtime = runtime_for(target)
    check_transfer(table, graph, target, granularity or runtime.granularity(target))
    plans = sample_plans(graph, table.granularity, wanted.nets, wanted.seed)
    priced = [layers_us(table, graph, chosen.widths) for chosen in plans]
    origin = table.origin or table.environment
    found = collect(
        *(model, graph, example, target, plans, wanted, table.granularity),
        {
            "transfer": [origin.device_name, origin.runtime_version, origin.created],
            "nets": wanted.nets,
        },
        journal=journal,
        resume=resume,
        watched=False,
    )
    slow = speeds(found.rows)
    networks = networks_of(name, graph, found, slow, priced)
    source = f"transfer from {origin.device_name}, {origin.runtime_version}"
    how = protocol(source, found, wanted, slow)
    return transferred(table, target, runtime.environment(target), networks, how)
