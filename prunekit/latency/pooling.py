"""Several sessions in one table, brought to one speed: what surfaces and calibration are fitted to.

A session is one profile. Absolute times drift by some percent from session to session and differ
between two machines of one type; ratios within a session do not. So the times of a session are
divided by how much slower it ran its own dense network than the median of the sessions with that
dense network. A network that several sessions measured then counts once, by medians: the dense one
is in every shard and would weigh as often, and a network left out of the fit must not stay in it
by its twin. The table keeps every measurement as it was taken; all this is done when it is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from statistics import median

from prunekit.core.graph import LayerShape
from prunekit.latency.records import Entry, Network, Sample

Structure = frozenset[tuple[tuple[LayerShape, int, int, int], int]]
"""(shape, in-width, out-width, calls) of all layers, each with how often it is there."""


def pooled(
    entries: tuple[Entry, ...], networks: tuple[Network, ...]
) -> tuple[tuple[Entry, ...], tuple[Network, ...]]:
    """Entries and networks at one speed, networks of equal structure as one, in order.

    Sessions with one dense network go by the name of the first of them: they are of one model, with
    one input. What was measured in one session is as it was.
    """
    if len({net.session for net in networks}) < 2:
        return entries, networks
    structure_of = structures(entries, len(networks))
    slower, first = _slowness(structure_of, networks), _first_alike(structure_of, networks)
    factors = [slower.get(net.session, 1.0) for net in networks]
    number_of: dict[Structure, int] = {}
    for structure in structure_of:
        number_of.setdefault(structure, len(number_of))
    numbers = [number_of[structure] for structure in structure_of]
    copies: dict[int, list[Network]] = defaultdict(list)
    for net, number, factor in zip(networks, numbers, factors, strict=True):
        alike = replace(net, session=first.get(net.session, net.session))
        copies[number].append(_slowed(alike, factor))
    return (
        tuple(
            replace(entry, samples=_pool_samples(entry.samples, numbers, factors))
            for entry in entries
        ),
        tuple(_pool_networks(copies[number]) for number in range(len(copies))),
    )


def structures(entries: tuple[Entry, ...], count: int) -> list[Structure]:
    """The structure of each of ``count`` networks; empty for one without samples."""
    layers: list[Counter[tuple[LayerShape, int, int, int]]] = [Counter() for _ in range(count)]
    for entry in entries:
        for sample in entry.samples:
            layers[sample.net][entry.shape, sample.cin, sample.cout, sample.calls] += 1
    return [frozenset(counted.items()) for counted in layers]


def _slowness(structure_of: list[Structure], networks: tuple[Network, ...]) -> dict[str, float]:
    """Each session's time for its dense network over the median session's."""
    dense: dict[Structure, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for structure, net in zip(structure_of, networks, strict=True):
        if net.kept >= 1:
            dense[structure][net.session].append(net.end_to_end_us)
    slower = {}
    for by_session in dense.values():
        times = {session: median(values) for session, values in by_session.items()}
        middle = median(times.values())
        slower.update({session: us / middle for session, us in times.items()})
    return slower


def _first_alike(structure_of: list[Structure], networks: tuple[Network, ...]) -> dict[str, str]:
    """The first session with the same dense network, for every session."""
    first: dict[Structure, str] = {}
    return {
        net.session: first.setdefault(structure, net.session)
        for structure, net in zip(structure_of, networks, strict=True)
        if net.kept >= 1
    }


def _slowed(net: Network, factor: float) -> Network:
    return replace(
        net,
        layers_us=net.layers_us / factor,
        end_to_end_us=net.end_to_end_us / factor,
        spread_us=net.spread_us / factor,
    )


def _pool_networks(copies: list[Network]) -> Network:
    return replace(
        copies[0],
        layers_us=median(net.layers_us for net in copies),
        end_to_end_us=median(net.end_to_end_us for net in copies),
        spread_us=median(net.spread_us for net in copies),
        runs=sum(net.runs for net in copies),
    )


def _pool_samples(
    samples: tuple[Sample, ...], numbers: list[int], factors: list[float]
) -> tuple[Sample, ...]:
    """The k-th layer of one shape and width is the same layer in every copy of a network."""
    seen: Counter[tuple[int, int, int, int]] = Counter()
    alike: dict[tuple[int, int, int, int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        place = sample.net, sample.cin, sample.cout, sample.calls
        factor = factors[sample.net]
        alike[(numbers[sample.net], *place[1:], seen[place])].append(
            replace(sample, us=sample.us / factor, spread_us=sample.spread_us / factor)
        )
        seen[place] += 1
    return tuple(
        replace(
            copies[0],
            net=number,
            us=median(sample.us for sample in copies),
            spread_us=median(sample.spread_us for sample in copies),
            runs=sum(sample.runs for sample in copies),
        )
        for (number, *_), copies in alike.items()
    )
