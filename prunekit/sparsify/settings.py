"""What a sparse training is asked for, and what cannot be had together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from prunekit.core.density import Distribution, Pattern
from prunekit.criteria import Magnitude, WeightCriterion
from prunekit.sparsify.schedule import SparsitySchedule
from prunekit.support.errors import UsageError
from prunekit.support.registry import criteria

Ranking: TypeAlias = Literal["layer", "global"]
Start: TypeAlias = Literal["random", "scores"]


@dataclass(frozen=True)
class Settings:
    """Settings of one training; those that cannot be used raise UsageError."""

    schedule: SparsitySchedule
    pattern: Pattern
    criterion: WeightCriterion
    distribution: Distribution
    ranking: Ranking
    start: Start

    @property
    def together(self) -> bool:
        """Whether the weights of all layers compete."""
        return self.ranking == "global"


def checked_schedule(
    method: str, schedule: SparsitySchedule | None, *, exchanges: bool
) -> SparsitySchedule:
    """``schedule``, which a fixed structure does without."""
    if schedule is None and not exchanges:
        schedule = SparsitySchedule(1)
    if not isinstance(schedule, SparsitySchedule):
        raise UsageError(
            f"{method} needs a schedule: pk.sparsify.SparsitySchedule(steps=epochs * len(loader))"
        )
    return schedule


def made_criterion(criterion: WeightCriterion | str | None) -> WeightCriterion:
    """By its name, or as it is; magnitude where none is asked for."""
    made = criteria.make(criterion) if isinstance(criterion, str) else criterion
    return Magnitude() if made is None else made


def check(settings: Settings, method: str, *, exchanges: bool) -> None:
    """Refuse words that mean nothing, and criteria that do not serve ``method``."""
    for name, choices in (("ranking", ("layer", "global")), ("start", ("random", "scores"))):
        if (value := getattr(settings, name)) not in choices:
            raise UsageError(f"`{name}` must be {' or '.join(choices)}, not {value!r}")
    if not method:
        raise UsageError("Sparsifier trains nothing by itself; use Static, SET, RigL, GMP or IEE")
    criterion: object = settings.criterion
    if isinstance(criterion, type):
        raise UsageError(
            f"`criterion` is the class {criterion.__name__}; give an instance of it, "
            f"{criterion.__name__}()"
        )
    if not isinstance(criterion, WeightCriterion):
        raise UsageError(
            f"criterion {getattr(criterion, 'name', criterion)!r} scores channels only; "
            "weights are scored by magnitude, taylor, taylor_weight or random"
        )
    if not exchanges and criterion.needs_gradients:
        raise UsageError(
            f"{method} chooses before any training, when {criterion.name} has no "
            "gradients; use magnitude or random"
        )


def check_cycle(schedule: SparsitySchedule, method: str, *, exploring: bool) -> None:
    """Refuse a training that is too short for one exchange."""
    cycle = sum(schedule.lengths(exploring=exploring))
    if cycle > schedule.last_step:
        raise UsageError(
            f"one cycle of {method} takes {cycle} steps, and exchanges end "
            f"after {schedule.last_step} of {schedule.steps}; train longer or shorten it"
        )
