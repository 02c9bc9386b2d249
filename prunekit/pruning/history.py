"""What became of a structure that changes: overlap, growth and survival, update by update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from prunekit.core.plan import ChannelPlan
from prunekit.pruning.forms import Channels
from prunekit.train.method_state import Saved
from prunekit.train.updates import ExchangeRow, UpdateLog


class IeeRow(ExchangeRow):
    """One update of IEE for channels."""

    predicted_ratio: float
    relative_flops: float
    """The training so far, as a share of the same number of dense steps."""
    widths: dict[str, int]


class UpdateFacts(TypedDict):
    """What of a row the history does not find out itself."""

    step: int
    cycle: int
    omega: float
    predicted_ratio: float
    relative_flops: float
    widths: dict[str, int]


@dataclass
class History(UpdateLog[IeeRow]):
    """Records one row per update of the structure."""

    grown: Channels = field(default_factory=dict)
    """What the last update added."""
    ever_grown: Channels = field(default_factory=dict)

    def record(
        self,
        before: ChannelPlan,
        stayed: Mapping[str, Sequence[int]],
        plan: ChannelPlan,
        facts: UpdateFacts,
    ) -> None:
        """Note the step from ``before`` to ``plan``; ``stayed`` are channels that did not go."""
        survived = None
        if count := _count(self.grown):
            survived = _still(self.grown, stayed) / count
        self.grown = {
            group: sorted({*kept} - {*stayed[group]}) for group, kept in plan.keep.items()
        }
        for group, channels in self.grown.items():
            self.ever_grown[group] = sorted({*self.ever_grown.get(group, ()), *channels})
        row: IeeRow = {
            "stage": "update",
            **facts,
            "iou": overlap(before, plan),
            "grown": _count(self.grown),
            "survival": survived,
        }
        self.rows.append(row)

    def survival(self, plan: ChannelPlan) -> float | None:
        """The share of all channels ever grown that are in ``plan``; None before any."""
        count = _count(self.ever_grown)
        return _still(self.ever_grown, plan.keep) / count if count else None


@dataclass(frozen=True)
class HistoryForm:
    """A history as facts; what it had was told."""

    name: str = "history"

    def write(self, value: History, saved: Saved) -> None:
        """All but how much was told."""
        saved.facts[self.name] = {
            "rows": list(value.rows),
            "grown": value.grown,
            "ever_grown": dict(value.ever_grown),
        }

    def read(self, saved: Saved) -> History:
        """With every row told."""
        facts = saved.facts[self.name]
        rows = list(facts["rows"])
        return History(rows, len(rows), dict(facts["grown"]), dict(facts["ever_grown"]))


def overlap(one: ChannelPlan, other: ChannelPlan) -> float:
    """Intersection over union of two structures, counted in channels of all groups."""
    both = sum(len({*kept} & {*other.keep[g]}) for g, kept in one.keep.items())
    either = sum(len({*kept} | {*other.keep[g]}) for g, kept in one.keep.items())
    return both / either


def _count(channels: Channels) -> int:
    return sum(map(len, channels.values()))


def _still(channels: Channels, keep: Mapping[str, Sequence[int]]) -> int:
    return sum(len({*c} & {*keep[g]}) for g, c in channels.items())
