"""How structures of channels, and scores of them, are saved with a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.scores import Scores
from prunekit.train.method_state import Saved, named

Channels: TypeAlias = dict[str, list[int]]
"""Positions by group."""
Arrays: TypeAlias = Mapping[str, NDArray[np.float64]]
"""One number per channel, by group."""


@dataclass(frozen=True)
class PlanForm:
    """A structure as the channels that it keeps, or None."""

    name: str
    graph: ChannelGraph

    def write(self, value: ChannelPlan | None, saved: Saved) -> None:
        """By group."""
        saved.facts[self.name] = None if value is None else channels(value)

    def read(self, saved: Saved) -> ChannelPlan | None:
        """With the cuts that follow from them."""
        keep: Channels | None = saved.facts[self.name]
        return None if keep is None else ChannelPlan.from_keep(self.graph, keep)


@dataclass(frozen=True)
class ActivePlanForm:
    """The active structure, with what was predicted of it."""

    graph: ChannelGraph

    def write(self, value: ChannelPlan, saved: Saved) -> None:
        """Under two names."""
        saved.facts.update(keep=channels(value), predicted=value.predicted)

    def read(self, saved: Saved) -> ChannelPlan:
        """With the cuts that follow from the channels; HALP predicted nothing once."""
        plan = ChannelPlan.from_keep(self.graph, saved.facts["keep"])
        return replace(plan, predicted=dict(saved.facts.get("predicted", {})))


@dataclass(frozen=True)
class NumbersForm:
    """Numbers by group, as lists among the facts."""

    name: str

    def write(self, value: Arrays, saved: Saved) -> None:
        """Every bit of them: JSON writes what reads back the same."""
        saved.facts[self.name] = {group: list(map(float, v)) for group, v in value.items()}

    def read(self, saved: Saved) -> dict[str, NDArray[np.float64]]:
        """As arrays again."""
        return {group: np.array(values) for group, values in saved.facts[self.name].items()}


@dataclass(frozen=True)
class ArraysForm:
    """Numbers by group, as one tensor each."""

    name: str

    def write(self, value: Arrays, saved: Saved) -> None:
        """Copies."""
        for group, numbers in value.items():
            saved.tensors[f"{self.name}.{group}"] = torch.from_numpy(np.array(numbers))

    def read(self, saved: Saved) -> dict[str, NDArray[Any]]:
        """As arrays again."""
        tensors = named(saved.tensors, self.name)
        return {group: tensor.cpu().numpy().copy() for group, tensor in tensors.items()}


@dataclass(frozen=True)
class ScoresForm:
    """Scores of ``criterion``, whose name is the same whenever they are read."""

    criterion: str
    numbers: NumbersForm

    def write(self, value: Scores, saved: Saved) -> None:
        """The numbers alone."""
        self.numbers.write(value.by_group, saved)

    def read(self, saved: Saved) -> Scores:
        """From how many batches does not matter any more."""
        return Scores(self.numbers.read(saved), self.criterion)


@dataclass(frozen=True)
class LastScoresForm:
    """Scores of ``criterion`` with the number of their batches, or None."""

    criterion: str
    name: str = "last"

    def write(self, value: Scores | None, saved: Saved) -> None:
        """Of None no tensors and no batches."""
        saved.facts[f"{self.name}_batches"] = value.batches if value else 0
        if value is not None:
            ArraysForm(self.name).write(value.by_group, saved)

    def read(self, saved: Saved) -> Scores | None:
        """None where there is no tensor."""
        by_group = ArraysForm(self.name).read(saved)
        batches = int(saved.facts[f"{self.name}_batches"])
        return Scores(by_group, self.criterion, batches) if by_group else None


def channels(plan: ChannelPlan) -> Channels:
    """What ``plan`` keeps of every group, as lists."""
    return {group: list(kept) for group, kept in plan.keep.items()}
