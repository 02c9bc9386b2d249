"""Predicted time of a layer shape over one of its widths: the staircase that kernels make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunekit.core.graph import LayerShape
from prunekit.latency.records import Entry
from prunekit.latency.table import LatencyTable
from prunekit.support.errors import UsageError

MOST_NAMES = 3
"""So many shapes are listed where none matches."""


@dataclass(frozen=True)
class Spot:
    """A sample on a staircase, in end-to-end microseconds of one call.

    ``carried_us`` is the sample times what the surface says of the way from its own other width to
    the staircase's; ``there`` says that it was measured at that width.
    """

    width: int
    carried_us: float
    cin: int
    cout: int
    measured_us: float
    predicted_us: float
    there: bool


@dataclass(frozen=True)
class Staircase:
    """Time over one width, at the other's ``full`` width; ``side`` is ``out``, ``in`` or ``both``.

    ``widths`` and ``us`` give every whole width from 1 on. One call, end-to-end calibrated.
    """

    shape: LayerShape
    side: Literal["in", "out", "both"]
    full: int
    block: int
    widths: NDArray[np.int64]
    us: NDArray[np.float64]
    spots: tuple[Spot, ...]

    def steps(self, most: int) -> list[tuple[int, float]]:
        """(width, us) at the end of each step, at most ``most`` of them, the last one included."""
        top = int(self.widths[-1])
        ends = [*range(self.block, top, self.block), top]
        stride = -(-len(ends) // most)
        return [(width, float(self.us[width - 1])) for width in ends[::-1][::stride][::-1]]

    def corners(self, most: int = 400) -> list[tuple[int, float]]:
        """(width, us) that draw the staircase; from one block on it rises at once, at the border.

        Thinned to about ``most`` where it is smooth.
        """
        rises = np.flatnonzero(np.diff(self.us))
        kept = np.unique(np.concatenate([[0], rises, rises + 1, [len(self.us) - 1]]))
        if len(kept) > most:
            kept = np.unique(np.linspace(0, len(self.us) - 1, most).astype(int))
        corners: list[tuple[int, float]] = []
        for width, us in zip(self.widths[kept].tolist(), self.us[kept].tolist(), strict=True):
            if corners and 1 < self.block <= corners[-1][0] == width - 1:
                corners.append((width - 1, us))
            corners.append((width, us))
        return corners


def staircases(table: LatencyTable, shape: LayerShape) -> tuple[Staircase, ...]:
    """Time over the out-width and over the in-width, each where the table has more than one.

    A depthwise shape has one width; a shape that never changes has a staircase of one width.
    """
    entry = next(entry for entry in table.pooled[0] if entry.shape == shape)
    if shape.kind == "depthwise":
        return (_staircase(table, entry, "both"),)
    varied = [
        side
        for side, widths in (
            ("out", {s.cout for s in entry.samples}),
            ("in", {s.cin for s in entry.samples}),
        )
        if len(widths) > 1
    ]
    sides: list[Literal["in", "out"]] = ["in" if side == "in" else "out" for side in varied]
    return tuple(_staircase(table, entry, side) for side in sides or ["out"])


def _staircase(table: LatencyTable, entry: Entry, side: Literal["in", "out", "both"]) -> Staircase:
    shape, samples = entry.shape, entry.samples
    in_full, out_full = max(s.cin for s in samples), max(s.cout for s in samples)
    widths = np.arange(1, (in_full if side == "in" else out_full) + 1)
    spots = []
    for sample in samples:
        width = sample.cin if side == "in" else sample.cout
        cin = in_full if side == "out" else sample.cin
        cout = out_full if side == "in" else sample.cout
        at_full = float(table.shape_us(shape, cin, cout))
        predicted = float(table.shape_us(shape, sample.cin, sample.cout))
        measured = float(table.calibration.call_us(sample.us))
        carried = at_full * measured / predicted if min(at_full, predicted) > 0 else at_full
        full = (cin, cout) == (sample.cin, sample.cout)
        spots.append(Spot(width, carried, sample.cin, sample.cout, measured, predicted, full))
    return Staircase(
        shape=shape,
        side=side,
        full=out_full if side == "in" else in_full,
        block=table.granularity,
        widths=widths,
        us=table.shape_us(
            shape,
            in_full if side == "out" else widths,
            out_full if side == "in" else widths,
        ),
        spots=tuple(sorted(spots, key=lambda s: (s.width, s.cin, s.cout, s.measured_us))),
    )


def find_shapes(table: LatencyTable, text: str) -> list[LayerShape]:
    """The shapes called ``text``, or else those whose text has it, the most expensive first."""
    every = dearest(table)
    matches = [shape for shape in every if str(shape).lower() == text.lower()]
    matches = matches or [shape for shape in every if text.lower() in str(shape).lower()]
    if not matches:
        some = "; ".join(str(shape) for shape in every[:MOST_NAMES])
        raise UsageError(
            f"no layer shape of this table matches --layer {text!r}; it has {some}, ... "
            "(prunekit table show lists all)"
        )
    return matches


def dearest(table: LatencyTable) -> list[LayerShape]:
    """All shapes by the predicted time of their calls in the network that uses them most."""
    return [shape for shape, _ in sorted(_costs(table).items(), key=lambda i: (-i[1], str(i[0])))]


def _costs(table: LatencyTable) -> dict[LayerShape, float]:
    costs = {}
    for entry in table.pooled[0]:
        by_net: dict[int, float] = {}
        cin, cout, calls, nets = (
            np.array(column)
            for column in zip(
                *((s.cin, s.cout, s.calls, s.net) for s in entry.samples), strict=True
            )
        )
        times = calls * table.shape_us(entry.shape, cin, cout)
        for net, us in zip(nets.tolist(), times.tolist(), strict=True):
            by_net[net] = by_net.get(net, 0.0) + us
        costs[entry.shape] = max(by_net.values())
    return costs
