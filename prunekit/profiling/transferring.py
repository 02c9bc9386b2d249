"""Transfer: a few whole networks calibrate another device's table to this one."""

from __future__ import annotations

from prunekit.latency import LatencyTable
from prunekit.latency.transfer import check_transfer, layers_us, transferred
from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.collecting import collect
from prunekit.profiling.harvest import networks_of, protocol
from prunekit.profiling.journal import Facts
from prunekit.profiling.request import ProfileRequest
from prunekit.profiling.rounds import speeds
from prunekit.runtimes import runtime_for

TRANSFER_NETS = 5
"""The dense network, the smallest and three between: two numbers are fitted to them."""


def transfer(request: ProfileRequest, table: LatencyTable) -> LatencyTable:
    """``table`` calibrated to the device of the request's target by runs of a few networks.

    No layer is profiled: ``table`` must be of the same runtime, precision, batch and threads, have
    all layers of the model, and be of a device with the same granularity (the request's, if it has
    one). :data:`TRANSFER_NETS` networks are enough.
    """
    graph, target, plan = request.graph, request.target, request.plan
    runtime = runtime_for(target)
    check_transfer(table, graph, target, request.granularity or runtime.granularity(target))
    plans = sample_plans(graph, table.granularity, plan.nets, plan.seed)
    priced = [layers_us(table, graph, chosen.widths) for chosen in plans]
    origin = table.origin or table.environment
    facts = Facts(
        transfer=(origin.device_name, origin.runtime_version, origin.created), nets=plan.nets
    )
    collection = collect(request, plans, table.granularity, facts, watched=False)
    slow = speeds(collection.rounds)
    networks = networks_of(request, collection, slow, priced)
    source = f"transfer from {origin.device_name}, {origin.runtime_version}"
    measured_how = protocol(source, collection, plan, slow)
    return transferred(table, target, runtime.environment(target), networks, measured_how)
