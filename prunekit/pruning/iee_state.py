"""Where an IEE training of channels stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.scores import Scores
from prunekit.pruning.forms import ActivePlanForm, NumbersForm, PlanForm, ScoresForm
from prunekit.pruning.history import History, HistoryForm
from prunekit.pruning.iee_schedule import Stage
from prunekit.train.method_state import Forms, forms_of


@dataclass
class IeeState:
    """All that a training needs to go on later but its networks; saved field by field."""

    stage: Stage
    left: int
    """Steps until the stage ends."""
    kept_scores: Scores
    """Of the active structure, from the last estimation."""
    done: int = 0
    cycle: int = 0
    stretch: int = 1
    """How many times longer estimation and improvement are in this cycle."""
    scoreless: int = 0
    """Further steps that the stage has waited for finite scores."""
    work: float = 0.0
    """Training so far, in steps of the dense network."""
    plan: ChannelPlan | None = None
    """The active structure, once it was chosen."""
    before: ChannelPlan | None = None
    """The structure at the start of the cycle."""
    history: History = field(default_factory=History)


def state_forms(graph: ChannelGraph, criterion: str) -> Forms:
    """How :class:`IeeState` is saved."""
    return forms_of(
        IeeState,
        {
            "plan": ActivePlanForm(graph),
            "before": PlanForm("before", graph),
            "kept_scores": ScoresForm(criterion, NumbersForm("kept_scores")),
            "history": HistoryForm(),
        },
    )
