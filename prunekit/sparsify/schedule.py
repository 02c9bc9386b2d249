"""When weights are exchanged and how many: settings that all methods share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, get_type_hints

from prunekit.support.errors import UsageError
from prunekit.support.parsing import parse_options

LONGEST = {"plain": 100, "exploring": 150}
"""Steps between exchanges, and of a stage of IEE, at most: RigL's and IEE's published ones."""
FEWEST = 20
"""In short trainings there are so many exchanges instead, of IEE half as many more."""
STOP_IOU = 0.9
"""Where IEE's exchanges end by default: tools/decisions/021."""

Stage: TypeAlias = Literal["train", "improve", "explore", "final"]


@dataclass(frozen=True)
class SparsitySchedule:
    """The course of a sparse training of ``steps`` optimizer steps; UsageError for wrong settings.

    Weights are exchanged after every ``every`` steps, until the share ``until`` of all steps is
    over. ``fraction`` of the active weights changes hands at first, less and less by ``decay``.

    The other settings are IEE's. A cycle is ``every`` steps with scores (H), the drop, ``improve``
    steps (J, none by default), ``explore`` steps (Q) in which only the inactive weights learn, and
    the growth.
    ``reactivate`` is the share of the inactive weights that comes back, a new ``sample`` each time:
    ``random``, or those with the largest ``gradient``. They begin from their last ``explored``
    values (zero before any), the most recently used ones (``mru``: before they were ever active,
    those the model was given with), or ``zero``; grown weights take
    over what they ``explored``, their ``mru`` values, or ``zero``. ``freeze`` keeps the active
    weights fixed meanwhile.
    ``momentum`` of what explores is ``zero`` at first, or ``kept`` from exploration to exploration
    and on into growth. ``stop_iou`` ends the exchanges once two structures in a row overlap by that
    much (weights in both over weights in either; 1: never); where ``fraction`` decays, so does what
    can differ, and it ends them by then at the latest. It is 0.9 for IEE, whose exploration costs
    most, and 1 for all others.

    Examples:
        >>> SparsitySchedule(steps=1000, until=0.5).last_step
        500
    """

    steps: int
    every: int | None = None
    fraction: float = 0.3
    decay: Literal["cosine", "exponential", "constant"] = "cosine"
    until: float = 0.75
    improve: int = 0
    explore: int | None = None
    reactivate: float = 1.0
    sample: Literal["random", "gradient"] = "random"
    source: Literal["explored", "mru", "zero"] = "explored"
    grow: Literal["explored", "mru", "zero"] = "explored"
    freeze: bool = True
    momentum: Literal["zero", "kept"] = "zero"
    stop_iou: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("decay", "sample", "source", "grow", "momentum"):
            if (value := getattr(self, name)) not in (choices := get_args(hints[name])):
                raise UsageError(f"`{name}` must be one of {', '.join(choices)}, not {value!r}")
        for name, low in (("steps", 1), ("every", 1), ("improve", 0), ("explore", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name in ("every", "explore"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(
                    f"`{name}` must be a whole number of at least {low}, not {value!r}"
                )
        for name in ("fraction", "until", "reactivate", "stop_iou"):
            share = getattr(self, name)
            if name == "stop_iou" and share is None:
                continue
            if not (isinstance(share, int | float) and 0 < share <= 1):
                raise UsageError(f"`{name}` must be above 0 and at most 1, not {share!r}")
        if not isinstance(self.freeze, bool):
            raise UsageError(f"`freeze` must be True or False, not {self.freeze!r}")
        if self.fraction == 1:
            raise UsageError("`fraction` must be below 1; 0.3 exchanges three weights of ten")
        if self.explore == 0 and self.source != "mru":
            raise UsageError(
                "`explore` of 0 leaves nothing to grow by, unless `source` is mru (the values "
                "weights had before they were dropped); use 1 or more"
            )

    @classmethod
    def parse(cls, steps: int, options: Mapping[str, object]) -> SparsitySchedule:
        """From text or values by field name; UsageError for an unknown name or a wrong value."""
        return parse_options(cls, steps, options, "option")

    @property
    def last_step(self) -> int:
        """No exchange ends after this many steps."""
        return int(self.until * self.steps)

    def lengths(self, *, exploring: bool) -> tuple[int, int, int]:
        """H, J and Q in steps; without exploration J and Q are zero."""
        kind = "exploring" if exploring else "plain"
        parts = 3 if exploring else 1
        stage = max(1, min(LONGEST[kind], self.last_step // (parts * FEWEST)))
        every = stage if self.every is None else self.every
        explore = stage if self.explore is None else self.explore
        return (every, self.improve, explore) if exploring else (every, 0, 0)

    def last_overlap(self, *, exploring: bool) -> float:
        """The overlap that ends the exchanges; 1: none does."""
        if self.stop_iou is None:
            return STOP_IOU if exploring else 1.0
        return self.stop_iou

    def ends(self, done: int, overlap: float, *, exploring: bool) -> bool:
        """Whether the exchange after ``done`` steps, with this overlap, is the last."""
        stop = self.last_overlap(exploring=exploring)
        if stop < 1 and overlap >= stop:
            return True
        return done + sum(self.lengths(exploring=exploring)) > self.last_step

    def fraction_at(self, step: int) -> float:
        """The share of the active weights that is exchanged after ``step`` steps."""
        done = min(1.0, step / max(1, self.last_step))
        if self.decay == "cosine":
            return self.fraction * 0.5 * (1 + math.cos(math.pi * done))
        # a hundredth of what it was, at the end
        return self.fraction * (0.01**done if self.decay == "exponential" else 1.0)
