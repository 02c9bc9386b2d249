"""IEE's decisions: functions of scores, budget and seed alone, the same on every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from prunekit.allocation.allocate import Allocation, allocate, uniform
from prunekit.allocation.costs import CostModel, total
from prunekit.allocation.solvers import Allocator, Uniform
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.scores import Scores
from prunekit.pruning.iee_schedule import IEESchedule
from prunekit.support.errors import InfeasibleError, UsageError


class StructureChooser:
    """Chooses the structures of one training; a fraction is a share of the dense cost."""

    def __init__(
        self,
        graph: ChannelGraph,
        costs: CostModel,
        budget: Budget,
        schedule: IEESchedule,
        solver: Allocator | None,
        granularity: int,
    ) -> None:
        self.graph, self.costs, self.kind = graph, costs, budget.kind
        self.schedule, self.solver, self.granularity = schedule, solver, granularity
        self.dense_cost = total(graph, {}, costs)
        self.fraction = budget.limit(self.dense_cost) / self.dense_cost
        """Of the structure that the training ends with."""
        if self.fraction >= 1:
            raise UsageError(f"{budget} is met by the dense network; there is nothing to prune")

    def first(self) -> ChannelPlan:
        """What training starts with."""
        if self.schedule.start == "dense":
            return ChannelPlan.dense(self.graph)
        return uniform(self.graph, self.costs, self.fraction, self.granularity, self.schedule.seed)

    def pruned(
        self, scores: Scores, fraction: float, omega: float, active: ChannelPlan
    ) -> ChannelPlan:
        """The best of the active channels at ``fraction`` less the share ``omega``."""
        if self.schedule.ranking == "global":
            return self.best(scores, fraction * (1 - omega), active).plan
        widths = self._uniform(scores, fraction).widths
        # not in blocks: growth fills them up again, and one block may be half of a group
        left = {
            g.id: min(now, max(g.widths()[0], int((1 - omega) * now)))
            for g in self.graph.groups
            if g.prunable
            for now in [min(widths[g.id], len(active.keep[g.id]))]
        }
        return ChannelPlan.from_widths(self.graph, left, scores)

    def best(self, scores: Scores, fraction: float, active: ChannelPlan) -> Allocation:
        """The best of the active channels at ``fraction``, or the least there may be."""
        floors = self._floors(active)
        with suppress(InfeasibleError):
            return self._solve(scores, fraction, active.widths, floors)
        with suppress(InfeasibleError):
            return self._solve(scores, fraction, active.widths)
        return self.smallest(scores)

    def grown(
        self, scores: Scores, fraction: float, active: ChannelPlan, wide: ChannelPlan
    ) -> Allocation:
        """``active`` and the best of the other channels of ``wide``.

        Raises InfeasibleError where the active channels alone cost more.
        """
        if self.schedule.ranking == "local":
            return self._uniform(scores, fraction, locked=active.keep)
        return self._solve(scores, fraction, wide.widths, locked=active.keep)

    def exchanged(self, scores: Scores, fraction: float, wide: ChannelPlan) -> Allocation:
        """The best of all channels of ``wide`` at ``fraction``, whichever are active now."""
        with suppress(InfeasibleError):
            return self._solve(scores, fraction, wide.widths, self._floors(wide))
        return self._solve(scores, fraction, wide.widths)

    def _floors(self, among: ChannelPlan) -> dict[str, int]:
        """What each group keeps at least of ``among``."""
        return {
            g.id: min(len(among.keep[g.id]), int(np.ceil(self.schedule.floor * g.size)))
            for g in self.graph.groups
        }

    def movable(self) -> tuple[int, int]:
        """How many groups can be wider than at their least within the budget, and of how many.

        Raises UsageError where none can: then there is nothing to exchange but channels.
        """
        groups = [group for group in self.graph.groups if group.prunable]
        least = {g.id: g.widths(self.granularity)[0] for g in self.graph.groups}
        limit = self.fraction * self.dense_cost * (1 + 1e-9)
        free = [
            group
            for group in groups
            if len(widths := group.widths(self.granularity)) > 1
            and total(self.graph, {**least, group.id: widths[1]}, self.costs) <= limit
        ]
        if not free:
            raise UsageError(
                f"at this budget no group can be wider than its least: all {len(groups)} stay in "
                f"one block of {self.granularity} channels; ask for more, or set --granularity"
            )
        return len(free), len(groups)

    def _uniform(
        self,
        scores: Scores,
        fraction: float,
        locked: Mapping[str, Sequence[int]] | None = None,
    ) -> Allocation:
        return allocate(
            *(self.graph, scores, self.costs, Budget.share(fraction, self.kind), Uniform()),
            granularity=self.granularity,
            locked=locked,
        )

    def smallest(self, scores: Scores) -> Allocation:
        """Every group at its least width."""
        least = {g.id: g.widths(self.granularity)[0] for g in self.graph.groups}
        return self._solve(scores, 1.0, least)

    def reactivated(self, active: ChannelPlan, cycle: int) -> ChannelPlan:
        """The active structure with a sample of the others, a function of seed and cycle."""
        share = self.schedule.reactivate
        if share == 1:
            return ChannelPlan.dense(self.graph)
        rng = np.random.default_rng([self.schedule.seed, cycle])
        keep: dict[str, Sequence[int]] = {}
        for group in self.graph.groups:
            asleep = np.setdiff1d(np.arange(group.size), active.keep[group.id])
            step = int(np.lcm(self.granularity, group.granularity))
            count = min(len(asleep), step * max(1, round(share * len(asleep) / step)))
            chosen = rng.permutation(asleep)[:count].tolist()
            keep[group.id] = [*active.keep[group.id], *chosen]
        return ChannelPlan.from_keep(self.graph, keep)

    def ratio(self, plan: ChannelPlan) -> float:
        """The predicted cost of ``plan`` as a share of dense."""
        return total(self.graph, plan.widths, self.costs) / self.dense_cost

    def _solve(
        self,
        scores: Scores,
        fraction: float,
        at_most: Mapping[str, int],
        at_least: Mapping[str, int] | None = None,
        locked: Mapping[str, Sequence[int]] | None = None,
    ) -> Allocation:
        return allocate(
            self.graph,
            scores,
            self.costs,
            Budget.share(fraction, self.kind),
            self.solver,
            granularity=self.granularity,
            at_most=at_most,
            at_least=at_least,
            locked=locked,
        )
