"""A table measured on one device, calibrated to another of its kind by whole networks alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prunekit.core.graph import ChannelGraph
from prunekit.core.target import Environment, Target
from prunekit.latency.calibration import Calibration
from prunekit.latency.records import Network
from prunekit.latency.table import LatencyTable, Protocol
from prunekit.support.errors import TableError


def check_transfer(
    table: LatencyTable, graph: ChannelGraph, target: Target, granularity: int
) -> None:
    """Refuse a table whose layers cannot stand for ``target``'s, or that lacks the model's."""
    kind = table.target.device.split(":")[0], target.device.split(":")[0]
    pairs = [
        ("runtime", table.target.runtime, target.runtime),
        ("device", *kind),
        ("precision", table.target.precision, target.precision),
        ("batch", table.target.batch, target.batch),
        ("threads", table.target.threads, target.threads),
    ]
    for name, of_table, of_device in pairs:
        if of_table != of_device:
            raise TableError(
                f"cannot transfer the latency table: its {name} is {of_table}, not {of_device}; "
                "run `prunekit profile` without --transfer"
            )
    of_table = table.granularity if table.probe is None else table.probe.nominal
    if granularity not in (of_table, table.granularity):
        raise TableError(
            f"cannot transfer the latency table: its device works in {of_table} channels, "
            f"this one in {granularity}; run `prunekit profile` without --transfer, or give "
            f"--granularity {table.granularity} to take it all the same"
        )
    table.check_layers(graph)


def layers_us(table: LatencyTable, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """Summed microseconds of all layer calls as they were profiled where ``table`` is from."""
    return replace(table, calibration=Calibration()).network_us(graph, widths)


def transferred(
    table: LatencyTable,
    target: Target,
    environment: Environment,
    networks: tuple[Network, ...],
    protocol: Protocol,
) -> LatencyTable:
    """``table`` on another device: its surfaces, with scale and cost per call fitted there.

    ``networks`` were timed end to end on the new device; their ``layers_us`` is what ``table`` says
    of their layers. Nothing else is fitted, so a layer that is faster there than the others stays
    wrong, and the error on networks left out of the fit says how much that matters.
    """
    origin = table.origin or table.environment
    return LatencyTable(
        target=target,
        environment=environment,
        protocol=protocol,
        granularity=table.granularity,
        probe=table.probe,
        models=table.models,
        entries=table.pooled[0],
        networks=networks,
        origin=origin,
    ).calibrated()
