"""Where a sparse training stands, and how that is saved."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from prunekit.sparsify.history import History, HistoryForm
from prunekit.sparsify.schedule import Stage
from prunekit.train.method_state import (
    UNSAVED,
    BySlot,
    Entry,
    Forms,
    Named,
    Numbered,
    forms_of,
)


@dataclass
class SparsifierState:
    """All that any method keeps but masks and scores; structures are lists of booleans."""

    stage: Stage
    left: int
    """Steps until the stage ends."""
    before: list[Tensor]
    """The structure that the last drop began with."""
    left_over: list[Tensor]
    """What that drop left."""
    done: int = 0
    cycle: int = 0
    waited: int = 0
    """Further steps that the stage has waited for finite gradients."""
    omega: float = 0.0
    """The share of the active weights that the last drop took."""
    gradients: list[Tensor] = field(default_factory=list)
    """Of all weights, at the step that an exchange reads them."""
    history: History = field(default_factory=History)


STATE_FORMS = forms_of(
    SparsifierState,
    {
        # copies: the three structures are the same tensors at times
        "before": Numbered("before", copied=True),
        "left_over": Numbered("left", copied=True),
        "gradients": Numbered("gradient"),
        "history": HistoryForm(),
    },
)


@dataclass
class ExplorationState:
    """What IEE keeps besides, each a list over the sparse weights."""

    asleep: list[Tensor] = field(default_factory=list)
    """What inactive weights begin to explore from."""
    recent: list[Tensor] = field(default_factory=list)
    """What they were when last active, where that is asked for."""
    awake: list[Tensor] = field(default_factory=list)
    """Inactive weights that are back; empty unless exploring."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """The model's, by name, as they were before it explored."""
    held: list[Entry] = field(default_factory=list)
    """The optimizer's state of the active weights, put by while exploring."""
    slept: list[Entry] = field(default_factory=list)
    """Its state of the inactive weights, from their last exploration, where that is kept."""
    free: list[Tensor] = field(default_factory=list, metadata=UNSAVED)
    """As factors: 1 for what the exploration trains."""
    values: list[Tensor] = field(default_factory=list, metadata=UNSAVED)
    """The active weights, zero elsewhere."""
    wide_counts: list[int] = field(default_factory=list, metadata=UNSAVED)
    """Active weights, and those that are back."""
    explored: list[Tensor] = field(default_factory=list, metadata=UNSAVED)
    """What they scored, until they grow."""


EXPLORATION_FORMS = forms_of(
    ExplorationState,
    {
        "asleep": Numbered("asleep"),
        "recent": Numbered("recent"),
        "awake": Numbered("awake"),
        "buffers": Named("buffer"),
        "held": BySlot("held"),
        "slept": BySlot("slept"),
    },
)


def exploration_forms(source: str) -> Forms:
    """How :class:`ExplorationState` is saved; ``mru`` values are what is asleep, under one name."""
    return {
        name: form
        for name, form in EXPLORATION_FORMS.items()
        if name != "recent" or source != "mru"
    }
