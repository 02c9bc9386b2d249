"""Which layers OpenVINO's executed nodes work for, and what single runs of them took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prunekit.runtimes.onnx_graph import OnnxGraph

_WEIGHTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_LAYOUT = "Reorder"
"""What changes layout or precision between nodes; never in the file."""


@dataclass(frozen=True)
class Executed:
    """A node as it runs: its kind, the model's nodes it stands for, and the nodes it reads."""

    name: str
    kind: str
    stands_for: tuple[str, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owners:
    """Executed node to its layers, each with a share of the node; the shares add up to 1.

    ``told`` are the nodes whose layer a name told, and those that only change the layout.
    """

    shares: Mapping[str, Mapping[str, float]]
    told: frozenset[str] = field(repr=False)


def owners(executed: Iterable[Executed], graph: OnnxGraph) -> Owners:
    """The layers of every executed node; ``executed`` comes in running order.

    A node made of several belongs to the layers whose weights it holds, else to that of what it
    ends with. A node of no known name belongs to the layer whose result it reads, as reorders do,
    and one before all layers to the first.
    """
    first = {graph.layers[0]: 1.0} if graph.layers else {}
    shares: dict[str, Mapping[str, float]] = {}
    placed = set()
    for node in executed:
        if node.kind in ("Const", "Input"):
            continue
        known = graph.shares(node.stands_for, main_first=node.kind in _WEIGHTED)
        if known or node.kind == _LAYOUT:
            placed.add(node.name)
        before = next((shares[name] for name in node.sources if name in shares), first)
        shares[node.name] = known or before
    return Owners(shares, frozenset(placed))


def layer_times(
    loads: Sequence[Sequence[Mapping[str, int] | None]], owners: Owners, graph: OnnxGraph
) -> tuple[list[dict[str, float]], float]:
    """Per run, layer name to microseconds, and the share of the time whose layer a name told.

    ``loads`` holds the nodes' running means after every run since a load, in whole microseconds,
    or None where they were not read. The first run of each load is left out.
    """
    first = {graph.layers[0]: 1.0} if graph.layers else {}
    runs: list[dict[str, float]] = []
    known = total = 0.0
    for load in loads:
        rows = [dict.fromkeys(graph.layers, 0.0) for _ in load[1:]]
        for node in sorted({name for means in load if means is not None for name in means}):
            took = single_runs([None if means is None else means.get(node, 0) for means in load])
            total += sum(took)
            known += sum(took) if node in owners.told else 0.0
            for layer, share in owners.shares.get(node, first).items():
                for row, us in zip(rows, took, strict=True):
                    row[layer] += share * us
        runs += rows
    return runs, known / total if total else 1.0


def single_runs(means: Sequence[int | None]) -> list[float]:
    """What each run but the first took, from the means over all runs so far, in microseconds.

    Means are cut to whole microseconds (None: not read; the first and the last are), so the sum
    over ``k`` runs is known to ``k``: of all sums that fit, those that bend least are taken (a
    taut string through the bounds).
    """
    bounds = [
        (0.0, np.inf) if mean is None else (count * mean, count * mean + count - 1)
        for count, mean in enumerate(means, start=1)
    ]
    low, high = np.array(bounds, float).reshape(-1, 2).T
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high[::-1])[::-1]
    sums = [float(low[0])] if means else []
    while len(sums) < len(means):
        here, start = len(sums) - 1, sums[-1]
        steps, slope = _pull(low[here:] - start, high[here:] - start)
        sums += [start + slope * step for step in range(1, steps + 1)]
    return [later - earlier for earlier, later in pairwise(sums)]


def _pull(low: np.ndarray, high: np.ndarray) -> tuple[int, float]:
    """How far a straight line from the origin stays within the bounds, and its slope."""
    least, most = -np.inf, np.inf
    least_at = most_at = 0
    for step in range(1, len(low)):
        rise, room = low[step] / step, high[step] / step
        if rise > most:
            return most_at, most
        if room < least:
            return least_at, least
        if rise >= least:
            least, least_at = rise, step
        if room <= most:
            most, most_at = room, step
    return len(low) - 1, float(least + most) / 2
