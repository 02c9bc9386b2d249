"""Joining latency tables of one target into one."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from prunekit.core.graph import LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency.records import Entry, Network, Sample
from prunekit.latency.table import LatencyTable, Protocol
from prunekit.support.errors import TableError


@dataclass(frozen=True)
class _Measured:
    """One network with its samples, told from every other by its session and its content."""

    network: Network
    samples: tuple[tuple[LayerShape, Sample], ...]


def merge(tables: Sequence[LatencyTable], names: Sequence[str] = ()) -> LatencyTable:
    """One table of all networks that ``tables`` hold, its calibration fitted anew.

    A set of measurements: the order of the tables does not matter, nor in what steps they are
    merged, and one measurement counts once however often it comes. Every network keeps what was
    measured and the name of its session, the profile it is from: sessions are brought to one speed
    by their dense networks whenever the table is read (see :mod:`prunekit.latency.pooling`). The
    newest environment and the least rounds, turns and seed stand for all. Tables of another target,
    device, version or granularity are refused by their ``names``, and so are transferred ones.
    """
    if not tables:
        raise TableError("nothing to merge; give tables")
    known = list(names) or [f"table {number}" for number in range(1, len(tables) + 1)]
    for table, name in zip(tables, known, strict=True):
        _refuse(tables[0], known[0], table, name)
    measured = sorted({one for table in tables for one in _networks(table)}, key=_place)
    protocols = [table.protocol for table in tables]
    return LatencyTable(
        target=_target([table.target for table in tables]),
        environment=max((table.environment for table in tables), key=_newest),
        protocol=Protocol(
            source=", ".join(sorted(_parts((p.source for p in protocols), ", "))),
            nets=len(measured),
            rounds=min(p.rounds for p in protocols),
            turns=min(p.turns for p in protocols),
            seed=min(p.seed for p in protocols),
            stopped="; ".join(sorted(_parts((p.stopped for p in protocols), "; "))),
            drift=max(p.drift for p in protocols),
            disturbed=max(p.disturbed for p in protocols),
            shards=tuple(sorted({shard for p in protocols for shard in p.shards})),
        ),
        granularity=tables[0].granularity,
        probe=min((t.probe for t in tables if t.probe is not None), key=_text, default=None),
        models=tuple(sorted({model for table in tables for model in table.models})),
        entries=_entries(measured),
        networks=tuple(one.network for one in measured),
    ).calibrated()


def _refuse(first: LatencyTable, its_name: str, table: LatencyTable, name: str) -> None:
    """Only what was measured on one kind of device, by one runtime, in one way goes together."""
    if table.origin is not None:
        raise TableError(
            f"cannot merge {name}: its layers were measured on {table.origin.device_name} and "
            "transferred; merge the tables that were profiled, then transfer"
        )
    if table.apart:
        raise TableError(
            f"cannot merge {name}: its layers were not watched in networks (--source "
            f"{table.protocol.source}); profile all of them with --source harvest"
        )
    gap = table.environment.difference(first.environment)
    if _unnumbered(table.target) != _unnumbered(first.target):
        gap = f"target {table.target.describe()} against {first.target.describe()}"
    elif gap is None and table.granularity != first.granularity:
        gap = f"granularity {table.granularity} against {first.granularity}"
    if gap is not None:
        raise TableError(
            f"cannot merge {name} with {its_name}: {gap}; profile both alike, or compare them with "
            "`prunekit table diff`"
        )


def _unnumbered(target: Target) -> Target:
    """The target without the number of a GPU, which several shards may differ in."""
    return replace(target, device=target.device.split(":")[0])


def _target(targets: list[Target]) -> Target:
    """The one target of all, without the number of a GPU where several took part."""
    return targets[0] if len({*targets}) == 1 else _unnumbered(targets[0])


def _networks(table: LatencyTable) -> list[_Measured]:
    label = _session(table)
    samples: dict[int, list[tuple[LayerShape, Sample]]] = defaultdict(list)
    for entry in sorted(table.entries, key=lambda entry: _text(entry.shape)):
        for sample in entry.samples:
            samples[sample.net].append((entry.shape, replace(sample, net=0)))
    return [
        _Measured(replace(net, session=net.session or label), tuple(samples[number]))
        for number, net in enumerate(table.networks)
    ]


def _session(table: LatencyTable) -> str:
    """A name of the profile that the table is, from its content and its date."""
    content = [table.environment.created, table.networks, table.entries]
    return hashlib.sha256(_text(content).encode()).hexdigest()[:12]


def _entries(measured: list[_Measured]) -> tuple[Entry, ...]:
    samples: dict[LayerShape, list[Sample]] = defaultdict(list)
    for number, one in enumerate(measured):
        for shape, sample in one.samples:
            samples[shape].append(replace(sample, net=number))
    ordered = sorted(samples.items(), key=lambda item: (str(item[0]), _text(item[0])))
    return tuple(Entry(shape, tuple(rows)) for shape, rows in ordered)


def _place(one: _Measured) -> tuple[float, str]:
    """Dense networks first, then from wide to narrow; equal ones in an order of their own."""
    return -one.network.kept, _text(one)


def _newest(environment: Environment) -> tuple[str, str]:
    return environment.created, _text(environment)


def _parts(texts: Iterable[str], mark: str) -> set[str]:
    return {part for text in texts for part in text.split(mark) if part}


def _text(value: object) -> str:
    """Data as canonical JSON."""
    return json.dumps(value, sort_keys=True, default=asdict)
