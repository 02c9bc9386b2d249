"""What a device's kernels are like: the channels they work in, and where they fall off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BLOCKS = (64, 32, 16, 8, 4)
SAVING = 0.7
"""The best block must keep less of an even fall than this, or there is none."""
ALIKE = 0.1
"""Blocks that keep so little more than the best one explain the staircase as well."""
GROWS = 1.25
"""A layer's time must grow at least so much over all widths to tell anything."""
SLOWER = 1.2
"""A cliff: so much slower than the next whole block, which computes more."""
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
    kinds = tuple(KindProbe(kind, block_of(found), _pairs(found)) for kind, found in times.items())
    granularity = max((kind.block for kind in kinds), default=1)
    if granularity == 1:
        granularity = nominal
    found = [_cliffs(kind, dict(by_width), granularity) for kind, by_width in times.items()]
    return Probe(granularity, nominal, kinds, tuple(cliff for cliffs in found for cliff in cliffs))


def block_of(times: Times) -> int:
    """The block of channels that widths are rounded up to, 1 where there is none.

    The largest of those that explain the staircase (see :func:`kept_of_fall`) about as well as the
    one that explains it best: a staircase of 16 is one of 4 too.
    """
    kept = {block: kept_of_fall(times, block) for block in BLOCKS}
    best = min(kept.values())
    return max((b for b in BLOCKS if kept[b] <= best + ALIKE), default=1) if best < SAVING else 1


def kept_of_fall(times: Times, block: int) -> float:
    """How much of an even fall from one whole block to the next there is within the block.

    A time in proportion to the width falls evenly, and gives 1. On a staircase it stays, and gives
    0; real ones slope a little, and have odd widths on kernels of their own, slower or faster.
    Also 1 where the time hardly depends on the width: that says nothing.
    """
    whole = [w for w in times if w % block == 0]
    if len(whole) < 2 or times[max(whole)] < GROWS * times[min(whole)]:
        return 1.0
    saved = even = 0.0
    for width in times:
        up = _up(width, block)
        low = up - block
        if width > block and width != up and up in times and low in times:
            fall = max(0.0, times[up] - times[low])
            even += fall * (up - width) / block
            saved += min(max(0.0, times[up] - times[width]), fall)
    return saved / even if even > 0 else 1.0


def _cliffs(kind: str, times: dict[int, float], block: int) -> list[Cliff]:
    """Where widths that save work take clearly longer."""
    ratio = {w: times[w] / times[_up(w, block)] for w in times if _up(w, block) in times}
    found = []
    for multiple in (2, 4, 8, 16, 32):
        off = [r for w, r in ratio.items() if w > block and w % multiple]
        on = [r for w, r in ratio.items() if w > block and w % multiple == 0]
        if off and on and np.median(off) > SLOWER > np.max(on):
            found.append(Cliff(kind, multiple, round(float(np.median(off)), 2)))
            break
    narrow = [r for w, r in ratio.items() if w < block]
    if narrow and np.median(narrow) > SLOWER:
        found.append(Cliff(kind, block, round(float(np.median(narrow)), 2), below=True))
    return found


def _up(width: int, block: int) -> int:
    return -(-width // block) * block


def _pairs(times: Times) -> tuple[tuple[int, float], ...]:
    return tuple((width, round(us, 3)) for width, us in sorted(times.items()))
