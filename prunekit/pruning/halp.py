"""Iterative pruning under an exponential budget schedule (HALP, arXiv 2210.06659), as a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.allocation.allocate import Allocation
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, geometric_budgets
from prunekit.core.scores import PRESENT, Scores
from prunekit.criteria import Accumulator, Criterion
from prunekit.networks.masking import mask_
from prunekit.networks.slimming import WHOLE, drop_masks, kept, named_tensors
from prunekit.pruning.forms import ActivePlanForm, ArraysForm, LastScoresForm
from prunekit.train.method_state import UNSAVED, Forms, Named, Saved, forms_of, read, write
from prunekit.train.rule import Facts, Tensors
from prunekit.train.updates import UpdateLog, UpdateRow

Solve = Callable[[Scores, float, dict[str, int], dict[str, int]], Allocation]
"""(scores, budget as a fraction of dense, widths not to exceed, least widths) -> allocation."""


@dataclass(frozen=True)
class Schedule:
    """When to prune: ``steps`` times, every ``interval`` optimizer steps; pure counting."""

    steps: int
    interval: int

    def due(self, step: int) -> int | None:
        """Which pruning step (0 first) ends with optimizer step ``step`` (0 first), or None."""
        if (step + 1) % self.interval:
            return None
        number = (step + 1) // self.interval - 1
        return number if number < self.steps else None


class HalpRow(UpdateRow):
    """One pruning step; ``cycle`` is its number."""

    predicted_ratio: float
    widths: dict[str, int]


@dataclass
class HalpState:
    """Where a pruning stands, but for what the present interval has scored."""

    plan: ChannelPlan
    last: Scores | None = None
    """The scores of the last full interval."""
    first: Scores | None = None
    """Those of the first, in which no channel was gone."""
    known: Scores | None = None
    """The last scores of every channel: of one that is gone, from when it went."""
    before: dict[str, Tensor] = field(default_factory=dict)
    """The dense network's tensors; of channels that are gone, with their last values."""
    log: UpdateLog[HalpRow] = field(default_factory=UpdateLog, metadata=UNSAVED)


def state_forms(graph: ChannelGraph, criterion: str) -> Forms:
    """How :class:`HalpState` is saved."""
    scores = {name: LastScoresForm(criterion, name) for name in ("last", "first", "known")}
    return forms_of(HalpState, {"plan": ActivePlanForm(graph), "before": Named("before"), **scores})


class Halp:
    """Prunes a little every ``interval`` steps while training goes on; pruned channels stay zero.

    Scores are averaged over the steps since the last pruning. The budgets fall exponentially from
    the dense cost to ``fraction`` of it, but not below ``floor``. The last pruning step is left to
    the caller, who has to find the structure that measures right and cannot take channels back;
    :meth:`scores` are what it needs. Each plan is at least as wide everywhere as the one that would
    be best at ``fraction``: of a plan that is not, coarse blocks may take away far too much.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        criterion: Criterion,
        solve: Solve,
        fraction: float,
        schedule: Schedule,
        floor: float = 0.0,
    ) -> None:
        self.graph = graph
        self.solve, self.fraction = solve, fraction
        self.schedule = schedule
        budgets = geometric_budgets(1.0, fraction, schedule.steps)
        self.budgets = [max(budget, min(floor, 1.0)) for budget in budgets]
        self.total = Accumulator(graph, criterion)
        """The scores of the present interval."""
        self._state = HalpState(ChannelPlan.dense(graph))
        self._model: nn.Module | None = None

    @property
    def plan(self) -> ChannelPlan:
        """What is kept."""
        return self._state.plan

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Masks act on the model itself."""
        del optimizer
        self._model = model

    def training_network(self, model: nn.Module) -> nn.Module:
        """The model itself, masked."""
        return model

    def inference_network(self, model: nn.Module) -> nn.Module:
        """The model itself, masked."""
        return model

    def rows(self) -> list[HalpRow]:
        """One record per pruning step since the last call, for the log."""
        return self._state.log.new()

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Add this batch's scores."""
        if step < self.schedule.steps * self.schedule.interval:
            self.total.add(model)

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Keep pruned channels at zero, and prune when it is due."""
        del optimizer  # its momentum moves removed channels, and the mask puts them back to zero
        number = self.schedule.due(step)
        if number is not None and self.total.batches:
            scores = self._state.last = self._reduced(self.total.scores())
            self._state.first = self._state.first or scores
            self._state.known = self._updated(scores)
            self.total.reset()
            if number < self.schedule.steps - 1:
                self._prune(model, scores, number, step)
        mask_(model, self.plan)

    def _prune(self, model: nn.Module, scores: Scores, number: int, step: int) -> None:
        """Pruning step ``number``, down to its budget."""
        self._remember(model)
        most = self.plan.widths
        end = self.solve(scores, self.fraction, most, {}).widths
        allocation = self.solve(scores, self.budgets[number], most, end)
        plan = self._state.plan = allocation.plan
        self._state.log.rows.append(
            {
                "stage": "update",
                "step": step + 1,
                "cycle": number,
                "predicted_ratio": allocation.ratio,
                "widths": {g.id: plan.widths[g.id] for g in self.graph.groups if g.prunable},
            }
        )

    def scores(self) -> Scores:
        """The scores of the last full interval; removed channels have none."""
        return self._state.last or self._reduced(self.total.scores())

    def dense_scores(self) -> Scores:
        """The scores of the first interval, of the dense network."""
        return self._state.first or self.scores()

    def known_scores(self) -> Scores:
        """The last scores of every channel, also of those that are gone."""
        return self._state.known or self.scores()

    def _updated(self, scores: Scores) -> Scores:
        """``scores``, and of channels that are gone their last ones."""
        if self._state.known is None:
            return scores
        by_group = {}
        for group, values in self._state.known.by_group.items():
            alive = list(self.plan.keep[group])
            by_group[group] = values.copy()
            by_group[group][alive] = scores.by_group[group][alive]
        return replace(scores, by_group=by_group)

    @torch.no_grad()
    def _remember(self, model: nn.Module) -> None:
        """Keep the values of all channels that are there: some of them are about to go."""
        before = self._state.before
        parts = kept(model, self.plan)
        for name, tensor in named_tensors(model):
            part = parts.get(name, WHOLE)
            if name not in before:
                before[name] = tensor.detach().clone()
            elif tensor.ndim:
                part.put_(before[name], part.take(tensor))

    @torch.no_grad()
    def revive_(self, model: nn.Module) -> None:
        """Give channels that are gone their last values back, for a plan that takes some of them.

        The network is dense again, without masks.
        """
        before = self._state.before
        parts = kept(model, self.plan)
        drop_masks(model)
        for name, tensor in named_tensors(model):
            if name in parts and name in before:
                whole = before[name].to(tensor.device, copy=True)
                parts[name].put_(whole, parts[name].take(tensor))
                tensor.copy_(whole)

    def _reduced(self, scores: Scores) -> Scores:
        """Zero for channels already gone; on all ranks alike, whose gradients are the same."""
        by_group = {}
        for group, values in scores.by_group.items():
            alive = np.zeros(len(values))
            alive[list(self.plan.keep[group])] = 1
            # a removed channel ranks below any live one, even one that scores zero
            by_group[group] = values * alive + alive * PRESENT
        return Scores(by_group, scores.criterion, scores.batches)

    # --- going on after a restart -------------------------------------------------------------

    def _forms(self) -> Forms:
        return state_forms(self.graph, self.total.criterion.name)

    def state(self) -> Saved:
        """Everything a resumed run needs."""
        saved = Saved.empty()
        ArraysForm("sum").write(self.total.sums, saved)
        saved.facts["batches"] = self.total.batches
        write(self._state, saved, self._forms())
        return saved

    def load_state(self, tensors: Tensors, facts: Facts) -> None:
        """Take up where :meth:`state` left off."""
        saved = Saved(tensors, facts)
        self.total.resume(int(facts["batches"]), ArraysForm("sum").read(saved))
        read(self._state, saved, self._forms())
        if self._model is not None:  # norms over channels leave out those that are gone
            mask_(self._model, self.plan)
