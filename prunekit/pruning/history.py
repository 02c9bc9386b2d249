"""What became of a structure that changes: overlap, growth and survival, update by update."""

from __future__ import annotations

from typing import Any

from prunekit.core.plan import ChannelPlan

Channels = dict[str, list[int]]


class History:
    """Records one row per update of the structure."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.told = 0
        """Rows that were handed out already."""
        self.grown: Channels = {}
        """What the last update added."""
        self.ever_grown: Channels = {}

    def record(
        self, before: ChannelPlan, pruned: ChannelPlan, plan: ChannelPlan, facts: dict[str, Any]
    ) -> None:
        """Note the step from ``before`` to ``plan`` by way of ``pruned``."""
        survived = None
        if count := _count(self.grown):
            survived = _still(self.grown, pruned) / count
        self.grown = {
            group: sorted({*kept} - {*pruned.keep[group]}) for group, kept in plan.keep.items()
        }
        for group, channels in self.grown.items():
            self.ever_grown[group] = sorted({*self.ever_grown.get(group, ()), *channels})
        found = {"iou": overlap(before, plan), "grown": _count(self.grown), "survival": survived}
        self.rows.append({"stage": "update", **facts, **found})

    def new(self) -> list[dict[str, Any]]:
        """The rows since the last call."""
        found = self.rows[self.told :]
        self.told = len(self.rows)
        return found

    def survival(self, plan: ChannelPlan) -> float | None:
        """The share of all channels ever grown that are in ``plan``; None before any."""
        count = _count(self.ever_grown)
        return _still(self.ever_grown, plan) / count if count else None

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"rows": self.rows, "grown": self.grown, "ever_grown": self.ever_grown}

    def load_state(self, facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; what it had was told."""
        self.rows, self.told = list(facts["rows"]), len(facts["rows"])
        self.grown, self.ever_grown = dict(facts["grown"]), dict(facts["ever_grown"])


def overlap(one: ChannelPlan, other: ChannelPlan) -> float:
    """Intersection over union of two structures, counted in channels of all groups."""
    both = sum(len({*kept} & {*other.keep[g]}) for g, kept in one.keep.items())
    either = sum(len({*kept} | {*other.keep[g]}) for g, kept in one.keep.items())
    return both / either


def _count(channels: Channels) -> int:
    return sum(map(len, channels.values()))


def _still(channels: Channels, plan: ChannelPlan) -> int:
    return sum(len({*c} & {*plan.keep[g]}) for g, c in channels.items())
