"""What a device's kernels are like: the channels they work in, and where they fall off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from prunekit.latency.surface import Array, evaluate, trend

BLOCKS = (4, 8, 16, 32, 64)
CLEARLY = 0.9
"""The best block must leave less than this of the misfit of no block, or there is none."""
LEAST, MOST = 0.005, 0.1
"""No width counts as less or further off than this."""
GROWS = 1.25
"""A layer's time must grow at least so much over all widths to tell anything."""
SLOWER = 1.2
"""A cliff: so much slower than the next whole block, which computes more."""
Width = TypeVar("Width", int, Array)
Times = Mapping[int, float]
"""Width -> microseconds."""


@dataclass(frozen=True)
class Cliff:
    """Layers of ``kind`` run ``slowdown`` times the next whole block at some widths.

    Those that are no multiple of ``multiple``, or with ``below`` those below one block.
    """

    kind: str
    multiple: int
    slowdown: float
    below: bool = False

    def __str__(self) -> str:
        """In words."""
        where = f"below {self.multiple}" if self.below else f"off multiples of {self.multiple}"
        return f"{self.kind} layers {where} channels take {self.slowdown:.1f} x the next block"


@dataclass(frozen=True)
class KindProbe:
    """One kind of layer: its block of channels (1: none found), and (width, microseconds)."""

    kind: str
    block: int
    times: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Probe:
    """The granularity found on a device, for every kind of layer and for all together.

    ``nominal`` is what the runtime takes for it without a probe.
    """

    granularity: int
    nominal: int
    kinds: tuple[KindProbe, ...]
    cliffs: tuple[Cliff, ...]

    def __str__(self) -> str:
        """In words."""
        kinds = ", ".join(f"{kind.kind} {kind.block}" for kind in self.kinds) or "not probed"
        cliffs = "".join(f"; {cliff}" for cliff in self.cliffs)
        return f"granularity {self.granularity} channels ({kinds}){cliffs}"


def read_probe(times: Mapping[str, Times], nominal: int) -> Probe:
    """The probe that measured times say, by kind of layer.

    All together work in the largest block that any kind has; ``nominal`` where none has one.
    """
    kinds = tuple(
        KindProbe(kind, block_of(widths), _pairs(widths)) for kind, widths in times.items()
    )
    granularity = max((kind.block for kind in kinds), default=1)
    if granularity == 1:
        granularity = nominal
    each = [_cliffs(kind, dict(by_width), granularity) for kind, by_width in times.items()]
    return Probe(granularity, nominal, kinds, tuple(cliff for cliffs in each for cliff in cliffs))


def block_of(times: Times) -> int:
    """The block of channels that widths are rounded up to, 1 where there is none.

    That with which a trend over rounded widths fits best, the rounded width being that of the
    outputs alone, as in kernels that take any number of inputs, or of both.
    """
    widths = np.array(sorted(times), dtype=np.float64)
    us = np.array([times[width] for width in sorted(times)])
    if us.max() < GROWS * us.min():
        return 1
    off = {
        block: min(_misfit(widths, us, inputs, block) for inputs in (1, block))
        for block in (1, *BLOCKS)
    }
    best = min(BLOCKS, key=lambda block: off[block])
    return best if off[best] < CLEARLY * off[1] else 1


def _misfit(widths: Array, us: Array, inputs: int, outputs: int) -> float:
    """Mean relative error of a trend over widths in whole blocks.

    Other kernels, slower or faster ones, run some widths: the absolute errors are made small, not
    their squares, and none counts for more than :data:`MOST`.
    """
    left, right = _up(widths, inputs), _up(widths, outputs)
    heed = np.ones(len(widths))
    for _ in range(20):
        fitted = trend(left, right, us, False, heed)
        error = np.abs(np.log(us / evaluate(fitted, left, right)))
        heed = 1 / np.sqrt(np.maximum(error, LEAST))
    return float(np.mean(np.clip(error, LEAST, MOST)))


def _cliffs(kind: str, times: dict[int, float], block: int) -> list[Cliff]:
    """Where widths that save work take clearly longer."""
    ratio = {w: times[w] / times[_up(w, block)] for w in times if _up(w, block) in times}
    cliffs = []
    for multiple in (2, 4, 8, 16, 32):
        off = [r for w, r in ratio.items() if w > block and w % multiple]
        on = [r for w, r in ratio.items() if w > block and w % multiple == 0]
        if off and on and np.median(off) > SLOWER > np.max(on):
            cliffs.append(Cliff(kind, multiple, round(float(np.median(off)), 2)))
            break
    narrow = [r for w, r in ratio.items() if w < block]
    if narrow and np.median(narrow) > SLOWER:
        cliffs.append(Cliff(kind, block, round(float(np.median(narrow)), 2), below=True))
    return cliffs


def _up(width: Width, block: int) -> Width:
    return -(-width // block) * block


def _pairs(times: Times) -> tuple[tuple[int, float], ...]:
    return tuple((width, round(us, 3)) for width, us in sorted(times.items()))
