"""Iterative pruning under an exponential budget schedule (HALP, arXiv 2210.06659), as a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.allocation.allocate import Allocation
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, geometric_budgets
from prunekit.core.scores import PRESENT, Scores
from prunekit.criteria import Accumulator, Criterion
from prunekit.networks.masking import mask_

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
        self.plan = ChannelPlan.dense(graph)
        self.last: Scores | None = None
        self._model: nn.Module | None = None
        self._rows: list[dict[str, Any]] = []

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

    def rows(self) -> list[dict[str, Any]]:
        """One record per pruning step since the last call, for the log."""
        found, self._rows = self._rows, []
        return found

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Add this batch's scores."""
        if step < self.schedule.steps * self.schedule.interval:
            self.total.add(model)

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Keep pruned channels at zero, and prune when it is due."""
        del optimizer  # its momentum moves removed channels, and the mask puts them back to zero
        number = self.schedule.due(step)
        if number is not None and self.total.batches:
            self.last = self._reduced(self.total.scores())
            self.total.reset()
            if number < self.schedule.steps - 1:
                most = self.plan.widths
                end = self.solve(self.last, self.fraction, most, {}).widths
                allocation = self.solve(self.last, self.budgets[number], most, end)
                self.plan = allocation.plan
                widths = {g.id: self.plan.widths[g.id] for g in self.graph.groups if g.prunable}
                self._rows.append(
                    {
                        "stage": "update",
                        "step": step + 1,
                        "cycle": number,
                        "predicted_ratio": allocation.ratio,
                        "widths": widths,
                    }
                )
        mask_(model, self.plan)

    def scores(self) -> Scores:
        """The scores of the last full interval; removed channels have none."""
        return self._reduced(self.total.scores()) if self.last is None else self.last

    def _reduced(self, scores: Scores) -> Scores:
        """Zero for channels already gone; on all ranks alike, whose gradients are the same."""
        found = {}
        for group, values in scores.by_group.items():
            alive = np.zeros(len(values))
            alive[list(self.plan.keep[group])] = 1
            # a removed channel ranks below any live one, even one that scores zero
            found[group] = values * alive + alive * PRESENT
        return Scores(found, scores.criterion, scores.batches)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs."""
        tensors = {f"sum.{g}": torch.from_numpy(v.copy()) for g, v in self.total.sums.items()}
        if self.last is not None:
            tensors |= {
                f"last.{g}": torch.from_numpy(np.asarray(v)) for g, v in self.last.by_group.items()
            }
        facts = {
            "batches": self.total.batches,
            "last_batches": self.last.batches if self.last else 0,
            "keep": {group: list(kept) for group, kept in self.plan.keep.items()},
            "predicted": self.plan.predicted,
        }
        return tensors, facts

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off."""
        self.total.batches = int(facts["batches"])
        for group in self.total.sums:
            self.total.sums[group] = tensors[f"sum.{group}"].cpu().numpy().copy()
        last = {n[5:]: t.cpu().numpy().copy() for n, t in tensors.items() if n.startswith("last.")}
        criterion = self.total.criterion.name
        self.last = Scores(last, criterion, int(facts["last_batches"])) if last else None
        plan = ChannelPlan.from_keep(self.graph, facts["keep"])
        self.plan = replace(plan, predicted=dict(facts.get("predicted", {})))
        if self._model is not None:  # norms over channels leave out those that are gone
            mask_(self._model, self.plan)
