"""When IEE does what: the lengths of its stages, how much changes hands, and its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, get_type_hints

from prunekit.support.errors import UsageError
from prunekit.support.parsing import parse_options

SHARES = {"separate": (0.70, 0.18, 0.12), "joint": (2 / 3, 0.0, 1 / 3)}
"""How a cycle divides its steps between estimation, improvement and exploration."""
UNTIL = {"uniform": 0.6, "dense": 0.4}
"""Where updates end by default: a trained network knows its channels sooner."""
UNTIL_JOINT = 0.35
"""The same where everything is exchanged at once: what follows has to train what was found."""
LEAST_EXPLORED, EXPLORED = 8, 20
"""Steps of a joint exploration: fewer give no scores to go by; by default there are as many."""
WHOLE_NUMBERS = {
    "steps": 1,
    "warmup": 0,
    "cycles": 1,
    "estimate": 1,
    "improve": 0,
    "explore": 1,
    "seed": 0,
}
"""Options that count something, and their least values."""
STRETCH = 8
"""How far ``adaptive`` lengthens a cycle at most."""
SETTLED = 0.95
"""Overlap of two structures in a row from which ``adaptive`` lengthens the next cycle."""

Stage: TypeAlias = Literal["warm-up", "estimate", "improve", "explore", "final"]


@dataclass(frozen=True)
class IEESchedule:
    """The course of one IEE training of ``steps`` optimizer steps; wrong settings raise UsageError.

    Stages (arXiv 2502.03658): ``estimate`` steps (H) with scores, prune, ``improve`` steps (J),
    ``explore`` steps (Q) with the active structure frozen, grow. They repeat until the share
    ``until`` of all steps is over (0.6, or 0.4 where ``start`` is ``dense``), ``warmup`` steps of
    plain training first (an eighth of all, or none); lengths not given divide that time among
    ``cycles``. ``omega`` of the budget changes hands in the first cycle, ``omega_end`` in the
    last, by ``decay``.

    ``exchange``: ``separate`` prunes what is active by its own scores, and grows into what that
    left free. ``joint`` prunes nothing first: one solve over all channels, by the scores that both
    got in the same exploration, decides widths and channels anew; the budget is full all the time,
    omega has no meaning, J is 0, Q is 20 or more, updates end at 0.35, and grown channels keep what
    they ``explored``, all by default. Nothing is locked, so that widths can follow the scores.

    ``start``: ``uniform`` begins at the budget with random channels of uniformly narrow groups,
    ``dense`` with the whole network, whose cost then falls exponentially over ``approach`` of the
    cycles. ``floor`` is the least share of a group that pruning leaves. With ``ranking`` =
    ``global`` channels of all groups compete, and widths follow the scores; with ``local`` each
    group exchanges the share omega of its own channels, and widths are uniform.

    Exploration: ``reactivate`` is the share of the inactive channels brought back, a new sample
    each time; ``freeze`` keeps the active structure fixed meanwhile; ``exploring`` off only scores
    the others, for one step. They begin from their last ``explored`` values or the most recently
    used ones (``mru``); a grown channel takes over what it ``explored``, its ``mru`` values, or
    ``zero`` on the weights that read it (the default of ``separate``). ``momentum`` of inactive
    parameters is ``kept`` from exploration to exploration, or ``zero``. ``norm``: BatchNorm
    explores with statistics of the ``batch`` or with its ``running`` ones.

    ``stop_iou`` ends the updates once two structures in a row overlap by at least that much
    (channels in both over channels in either); ``adaptive`` doubles H and J, up to eightfold,
    after every cycle with an overlap of at least 0.95. Both wait until the budget is reached.

    Examples:
        >>> schedule = IEESchedule(steps=1000, cycles=10)
        >>> schedule.warm, schedule.lengths
        (125, (33, 9, 6))
    """

    steps: int
    warmup: int | None = None
    cycles: int = 20
    estimate: int | None = None
    improve: int | None = None
    explore: int | None = None
    omega: float = 0.1
    omega_end: float = 0.02
    decay: Literal["exponential", "cosine", "constant"] = "exponential"
    until: float | None = None
    start: Literal["uniform", "dense"] = "uniform"
    approach: float = 0.7
    floor: float = 0.125
    ranking: Literal["global", "local"] = "global"
    reactivate: float = 1.0
    exploring: bool = True
    freeze: bool = True
    source: Literal["explored", "mru"] = "explored"
    grow: Literal["explored", "mru", "zero"] | None = None
    momentum: Literal["kept", "zero"] = "kept"
    norm: Literal["batch", "running"] = "batch"
    stop_iou: float | None = None
    adaptive: bool = False
    exchange: Literal["separate", "joint"] = "separate"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("exchange", "decay", "start", "source", "momentum", "norm", "ranking"):
            _check_choice(name, getattr(self, name), get_args(hints[name]))
        if self.grow is not None:
            _check_choice("grow", self.grow, get_args(get_args(hints["grow"])[0]))
        for name in ("omega", "omega_end", "until", "reactivate", "floor", "approach"):
            share = getattr(self, name)
            if name == "until" and share is None:
                continue
            if not (isinstance(share, int | float) and 0 <= share <= 1):
                raise UsageError(f"`{name}` must be from 0 to 1, not {share!r}")
        if self.explore == 0:
            raise UsageError("`explore` must be at least 1; to leave it out set `exploring` off")
        for name, low in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None and hints[name] is not int:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(
                    f"`{name}` must be a whole number of at least {low}, not {value!r}"
                )
        if self.omega >= 1:
            raise UsageError("`omega` must be below 1; 0.2 lets a fifth of the budget change hands")
        if self.reactivate == 0:
            raise UsageError("`reactivate` must be above 0; to leave it out set `exploring` off")
        if self.stop_iou is not None and not 0 < self.stop_iou <= 1:
            raise UsageError(f"`stop_iou` must be above 0 and at most 1, not {self.stop_iou!r}")
        self._check_joint()
        if self.warm + sum(self.lengths) > self.steps:
            raise UsageError(
                f"one IEE cycle takes {self.warm} warm-up and {sum(self.lengths)} further steps, "
                f"the training has {self.steps}; train longer or shorten the stages"
            )

    def _check_joint(self) -> None:
        """What one solve over everything needs, and what has no meaning with it."""
        if self.exchange != "joint":
            return
        if not self.exploring:
            raise UsageError("exchange `joint` scores while it explores; leave `exploring` on")
        if self.ranking == "local":
            raise UsageError("with exchange `joint` all channels compete; leave `ranking` global")
        if self.lengths[2] < LEAST_EXPLORED:
            raise UsageError(
                f"an exploration of {self.lengths[2]} steps is too short to score by; with "
                f"exchange `joint` give `explore` {LEAST_EXPLORED} or more"
            )

    @classmethod
    def parse(cls, steps: int, options: Mapping[str, object]) -> IEESchedule:
        """From text or values by field name; UsageError for an unknown name or a wrong value."""
        return parse_options(cls, steps, options, "IEE option")

    @property
    def warm(self) -> int:
        """Steps before the first estimation."""
        if self.warmup is not None:
            return self.warmup
        return 0 if self.start == "dense" else self.steps // (24 if self.is_joint else 8)

    @property
    def is_joint(self) -> bool:
        """Whether one solve decides on all channels."""
        return self.exchange == "joint"

    @property
    def growth(self) -> Literal["explored", "mru", "zero"]:
        """What grown channels begin with."""
        return self.grow or ("explored" if self.is_joint else "zero")

    @property
    def last_step(self) -> float:
        """No cycle ends after this many steps."""
        default = UNTIL_JOINT if self.is_joint else UNTIL[self.start]
        return (default if self.until is None else self.until) * self.steps

    @property
    def lengths(self) -> tuple[int, int, int]:
        """H, J and Q in steps."""
        cycle = max(3.0, (self.last_step - self.warm) / self.cycles)
        if self.is_joint:
            cycle = max(3.0 * EXPLORED, cycle)
        given = (self.estimate, self.improve, self.explore)
        estimate, improve, explore = [
            (max(1, round(share * cycle)) if share else 0) if value is None else value
            for share, value in zip(SHARES[self.exchange], given, strict=True)
        ]
        return estimate, improve, explore if self.exploring else 1

    # --- what is due --------------------------------------------------------------------------

    @property
    def first_stage(self) -> tuple[Stage, int]:
        """What training begins with, and for how many steps."""
        return ("warm-up", self.warm) if self.warm else ("estimate", self.lengths[0])

    def stage_after(self, stage: Stage, stretch: int) -> tuple[Stage, int]:
        """The next stage that has any steps, and how many, unless the cycle was the last."""
        estimate, improve, explore = self.lengths
        if stage == "estimate" and improve:
            return "improve", improve * stretch
        if stage in ("estimate", "improve"):
            return "explore", explore
        return "estimate", estimate * stretch

    def stretch_after(self, stretch: int, overlap: float) -> int:
        """How many times longer H and J become after an update at the budget."""
        return min(STRETCH, 2 * stretch) if self.adaptive and overlap >= SETTLED else 1

    def fitting(self, stretch: int, done: int) -> int:
        """The longest stretch up to this one that a cycle has time for; 0 where it has none."""
        estimate, improve, explore = self.lengths
        left = self.last_step - done - explore
        while stretch > 1 and (estimate + improve) * stretch > left:
            stretch //= 2
        return stretch if (estimate + improve) * stretch <= left else 0

    @property
    def updates(self) -> int:
        """How many updates fit when none is lengthened: at least one."""
        return max(1, int((self.last_step - self.warm) // sum(self.lengths)))

    def omega_at(self, cycle: int) -> float:
        """The share of the budget that may change hands in ``cycle`` (from 0)."""
        if self.is_joint:
            return 1.0
        last = max(1, self.updates - 1)
        done = min(1.0, cycle / last)
        if self.decay == "constant" or self.omega == 0:
            return self.omega
        if self.decay == "cosine":
            low = min(self.omega_end, self.omega)
            return low + (self.omega - low) * 0.5 * (1 + math.cos(math.pi * done))
        low = min(max(self.omega_end, 1e-4), self.omega)
        return float(self.omega * (low / self.omega) ** done)

    def budget_at(self, cycle: int, fraction: float) -> float:
        """What the structure may cost after ``cycle``, a share of dense; ends at ``fraction``."""
        if self.start != "dense":
            return fraction
        steps = max(1, round(self.approach * self.updates))
        return float(fraction ** min(1.0, (cycle + 1) / steps))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"`{name}` must be one of {', '.join(choices)}, not {value!r}")
