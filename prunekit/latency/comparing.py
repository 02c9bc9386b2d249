"""Where two latency tables differ: their devices, their networks, their layer shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

from prunekit.core.graph import LayerShape
from prunekit.latency.pooling import Structure, structures
from prunekit.latency.records import Entry, Network
from prunekit.latency.surface import pad
from prunekit.latency.table import LatencyTable


@dataclass(frozen=True)
class Fact:
    """Something that differs, as each table has it."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class WidthRatio:
    """Predicted microseconds of one call at a width both tables have seen; ``ratio`` is B over A.

    None where the cost per call leaves nothing to compare.
    """

    at: str
    cin: int
    cout: int
    a_us: float
    b_us: float
    ratio: float | None


@dataclass(frozen=True)
class ShapeDiff:
    """One layer shape that both tables have; ``apart`` is how far from the overall ratio it is.

    The largest factor between a ratio of its own and the overall one, above 1; None without any.
    """

    shape: LayerShape
    widths: tuple[WidthRatio, ...]
    apart: float | None


@dataclass(frozen=True)
class TableDiff:
    """All differences of table B from table A.

    ``ratio`` is B's time over A's: the median of the networks in both (with the least and the
    largest), or of the shapes in both at their widest where ``networks`` is 0. ``shapes`` come by
    distance from it.
    """

    facts: tuple[Fact, ...]
    networks: int
    ratio: float | None
    low: float | None
    high: float | None
    shapes: tuple[ShapeDiff, ...]
    only_a: tuple[LayerShape, ...]
    only_b: tuple[LayerShape, ...]


def diff(a: LatencyTable, b: LatencyTable) -> TableDiff:
    """Compare two tables of any targets and devices."""
    ratios = _network_ratios(a, b)
    common = {entry.shape: _widths(a, b, entry, b.by_shape[entry.shape]) for entry in _both(a, b)}
    widest = [rows[0].ratio for rows in common.values() if rows[0].ratio is not None]
    overall = median(ratios or widest) if ratios or widest else None
    differences = [ShapeDiff(shape, rows, _apart(rows, overall)) for shape, rows in common.items()]
    return TableDiff(
        facts=tuple(_facts(a, b)),
        networks=len(ratios),
        ratio=overall,
        low=min(ratios, default=None),
        high=max(ratios, default=None),
        shapes=tuple(sorted(differences, key=lambda one: (-(one.apart or 0.0), str(one.shape)))),
        only_a=_only(a, b),
        only_b=_only(b, a),
    )


def _both(a: LatencyTable, b: LatencyTable) -> list[Entry]:
    return [entry for entry in a.pooled[0] if entry.shape in b.by_shape]


def _only(one: LatencyTable, other: LatencyTable) -> tuple[LayerShape, ...]:
    return tuple(sorted((s for s in one.by_shape if s not in other.by_shape), key=str))


def _facts(a: LatencyTable, b: LatencyTable) -> list[Fact]:
    """Target, environment and granularity where they differ; the date is none of them."""
    pairs: list[tuple[str, object, object]] = [
        ("target", a.target.describe(), b.target.describe()),
        ("granularity", a.granularity, b.granularity),
    ]
    env_a, env_b = a.environment, b.environment
    pairs += [
        (part.name.replace("_", " "), getattr(env_a, part.name), getattr(env_b, part.name))
        for part in fields(env_a)
        if part.name not in ("packages", "created")
    ]
    pairs += [
        (name, env_a.packages.get(name, ""), env_b.packages.get(name, ""))
        for name in sorted({*env_a.packages, *env_b.packages})
    ]
    mine, theirs = (table.origin.device_name if table.origin else "" for table in (a, b))
    pairs.append(("layers measured on", mine, theirs))
    return [Fact(what, _text(one), _text(other)) for what, one, other in pairs if one != other]


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _network_ratios(a: LatencyTable, b: LatencyTable) -> list[float]:
    """End-to-end ratios of the networks in both.

    Of a table whose layers were not watched in its networks only the dense one's: nothing tells the
    narrow ones apart.
    """
    if not a.apart and not b.apart:
        mine, theirs = _by_structure(a), _by_structure(b)
        return [theirs[key] / us for key, us in mine.items() if key in theirs]
    if not (a.by_shape.keys() <= b.by_shape.keys() or b.by_shape.keys() <= a.by_shape.keys()):
        return []  # of one model, perhaps, but at different inputs
    whole, other = _dense(a), _dense(b)
    return [other[key] / us for key, us in whole.items() if key in other]


def _by_structure(table: LatencyTable) -> dict[Structure, float]:
    entries, networks = table.pooled
    pairs = zip(structures(entries, len(networks)), networks, strict=True)
    return {structure: net.end_to_end_us for structure, net in pairs if structure}


def _dense(table: LatencyTable) -> dict[tuple[str, int], float]:
    networks: tuple[Network, ...] = table.pooled[1]
    return {(net.model, net.calls): net.end_to_end_us for net in networks if net.kept >= 1}


def _widths(a: LatencyTable, b: LatencyTable, mine: Entry, theirs: Entry) -> tuple[WidthRatio, ...]:
    """Dense, half and narrow: widths inside what both have measured."""
    block = math.lcm(a.granularity, b.granularity)
    (in_low, in_high), (out_low, out_high) = (
        (
            max(min(getattr(s, side) for s in one.samples) for one in (mine, theirs)),
            min(max(getattr(s, side) for s in one.samples) for one in (mine, theirs)),
        )
        for side in ("cin", "cout")
    )
    places = [
        ("dense", in_high, out_high),
        ("half", _half(in_low, in_high, block), _half(out_low, out_high, block)),
        ("narrow", min(in_low, in_high), min(out_low, out_high)),
    ]
    ratios: dict[tuple[int, int], WidthRatio] = {}
    for at, cin, cout in places:
        times = [float(table.shape_us(mine.shape, cin, cout)) for table in (a, b)]
        ratio = times[1] / times[0] if min(times) > 0 else None
        ratios.setdefault((cin, cout), WidthRatio(at, cin, cout, times[0], times[1], ratio))
    return tuple(ratios.values())


def _half(low: int, high: int, block: int) -> int:
    """Half the width in whole blocks, within the two; a width that never changes stays."""
    return min(high, max(low, int(pad(np.array(high // 2), block))))


def _apart(rows: tuple[WidthRatio, ...], overall: float | None) -> float | None:
    factors = [math.exp(abs(math.log(r.ratio / overall))) for r in rows if r.ratio and overall]
    return max(factors, default=None)
