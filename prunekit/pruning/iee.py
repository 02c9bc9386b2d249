"""Iterative exploitation and exploration (IEE, arXiv 2502.03658) for channels, under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.allocation.allocate import Allocation, cost_model
from prunekit.allocation.costs import CostModel
from prunekit.allocation.solvers import Allocator
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, lifted, narrowed
from prunekit.core.scores import Scores
from prunekit.criteria import Accumulator, Criterion, Taylor
from prunekit.latency import LatencyTable
from prunekit.pruning.dense_store import Network
from prunekit.pruning.forms import NumbersForm
from prunekit.pruning.history import IeeRow, overlap
from prunekit.pruning.iee_networks import Networks
from prunekit.pruning.iee_schedule import IEESchedule, Stage
from prunekit.pruning.iee_state import IeeState, state_forms
from prunekit.pruning.iee_structure import StructureChooser
from prunekit.support.errors import InfeasibleError, TrainingError, UsageError
from prunekit.support.processes import average_, on_rank_zero
from prunekit.train.method_state import Saved, check_settings, read, write
from prunekit.train.rule import Facts, Tensors
from prunekit.train.step import PATIENCE, check_optimizer, take_step

Update = Callable[[float], Allocation]
"""An update of the structure as a function of the budget, a share of dense."""
Settle = Callable[[Update, Update], ChannelPlan]
"""Given the last update, and the smallest structure (for any budget), the plan to end with."""


class IEE:
    """Trains a network while it moves to the budget: exploit, prune, train, explore, grow.

    Exploitation trains a physically slim network; only exploration runs the wide one, with the
    active structure frozen. :attr:`model` is the network of the next step. In a loop of one's own,
    with an optimizer over ``model``'s parameters::

        for batch in loader:
            loss_fn(iee.model, batch).backward()
            iee.step(optimizer)

    ``schedule.steps`` steps end with the slim network in :attr:`model` and :attr:`plan`.
    ``costs`` is a latency table, or None for a MACs or parameters budget. With several processes
    gradients are averaged here: give every process the same model and its share of the batch.
    ``settle`` has the last word on the widths, to land on a measured latency for example.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        costs: LatencyTable | CostModel | None,
        budget: Budget,
        criterion: Criterion | None = None,
        schedule: IEESchedule | None = None,
        *,
        solver: Allocator | None = None,
        granularity: int | None = None,
        settle: Settle | None = None,
    ) -> None:
        if schedule is None:
            raise UsageError("IEE needs a schedule: pk.IEESchedule(steps=epochs * len(loader))")
        if any(m.role.scaled for g in graph.groups if g.prunable for m in g.members):
            raise UsageError(
                "IEE removes whole heads of attentions only; trace the model with heads='whole'"
            )
        self.graph, self.schedule = graph, schedule
        self.criterion: Criterion = criterion or Taylor()
        prices, block = cost_model(costs, budget, granularity)
        self.chooser = StructureChooser(graph, prices, budget, schedule, solver, block)
        if schedule.is_joint:
            self.chooser.movable()
        self.settle = settle
        self._state = IeeState(*schedule.first_stage, Scores({}, self.criterion.name))
        self._networks = Networks(model, graph, schedule)
        self._total: Accumulator | None = None
        """Scores of the stage, where it has any."""

    # --- what a user of the class sees --------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The network to run next."""
        return self._current().module

    @property
    def slim(self) -> nn.Module:
        """The active structure as a physically slim network."""
        return self._opened().module

    @property
    def plan(self) -> ChannelPlan:
        """The active structure; the first one is chosen by all processes together."""
        return self._state.plan or self._choose_first()

    @property
    def stage(self) -> Stage:
        """``warm-up``, ``estimate``, ``improve``, ``explore`` or ``final``."""
        return self._state.stage

    @property
    def work(self) -> float:
        """Training so far, in steps of the dense network."""
        return self._state.work

    @property
    def history(self) -> list[IeeRow]:
        """One record per update of the structure so far."""
        return self._state.history.rows

    def survival(self) -> float | None:
        """The share of all channels ever grown that are in the structure now; None before any."""
        return self._state.history.survival(self.plan)

    def step(
        self, optimizer: Optimizer, clip_norm: float = 0.0, scaler: GradScaler | None = None
    ) -> None:
        """One optimizer step after a backward pass of :attr:`model`, which may change it.

        ``clip_norm`` above 0 limits the norm of the gradients of what is trained; clipped before,
        those of what is frozen while exploring would count. ``scaler`` is the one that scaled the
        loss, in mixed precision; it is unscaled, stepped and updated here.
        """
        if self._networks.store.optimizer is None:
            self._attach(optimizer)
        check_optimizer("IEE", self._networks.store.optimizer, optimizer)
        trained = self.model
        if all(parameter.grad is None for parameter in trained.parameters()):
            raise UsageError(
                "no parameter of `iee.model` has a gradient; run the loss of every step on "
                "`iee.model`, which is another network from time to time"
            )
        take_step(self, trained, optimizer, self._state.done, clip_norm, scaler)
        self.model.zero_grad(set_to_none=True)

    # --- the training loop's calls ------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over the dense ``model``'s parameters."""
        if model is not self._networks.store.model:
            raise UsageError("IEE was made for another model; give it the same one")
        if not self._state.done:  # what was opened before may have other values, modes or devices
            self._networks.slim = self._total = None
        self._attach(optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        self._networks.store.attach(optimizer)
        self._networks.attach(self._current())

    def training_network(self, model: nn.Module) -> nn.Module:
        """The network of the next step."""
        del model
        return self.model

    def inference_network(self, model: nn.Module) -> nn.Module:
        """The active structure."""
        del model
        return self.slim

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Add this batch's scores; while exploring, leave the active structure no gradient."""
        del step
        if self._total is not None and self.criterion.needs_gradients:
            self._total.add(model)
        if self._state.stage != "explore":
            return
        if not self.schedule.exploring:
            model.zero_grad(set_to_none=True)
        elif self._networks.frozen is not None:
            self._networks.frozen.clear_gradients_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Put the active structure back while exploring, and go to the next stage when due."""
        del model, optimizer, step
        state = self._state
        if self._networks.frozen is not None:
            self._networks.frozen.put_back_()
        state.work += self._current().work
        state.done += 1
        state.left -= 1
        if state.left or state.stage == "final":
            return
        if self._scoreless and state.scoreless < PATIENCE:
            # mixed precision lets gradients overflow now and then
            state.scoreless += 1
            state.left = 1
            return
        state.scoreless = 0
        self._next()

    @property
    def _scoreless(self) -> bool:
        """Whether the stage has scores to take and has had none that were finite."""
        total = self._total
        return total is not None and self.criterion.needs_gradients and not total.batches

    def rows(self) -> list[IeeRow]:
        """One record per update of the structure since the last call, for the log."""
        return self._state.history.new()

    # --- stages -------------------------------------------------------------------------------

    def _choose_first(self) -> ChannelPlan:
        """Decide on the structure to begin with: one process does, and tells the others."""
        self._state.plan = on_rank_zero(self.chooser.first)
        return self._state.plan

    def _current(self) -> Network:
        """What the next step trains."""
        return self._networks.wide or self._opened()

    def _opened(self) -> Network:
        """The active structure, cut on first use."""
        new = self._networks.slim is None
        slim = self._networks.opened(self.plan)
        scored = self._state.stage == "estimate" and not self.schedule.is_joint
        if new and scored and self._total is None:
            self._accumulate(slim.plan)
        return slim

    def _accumulate(self, plan: ChannelPlan) -> Accumulator:
        """Score a network of structure ``plan`` from now on."""
        self._total = Accumulator(narrowed(self.graph, plan), self.criterion)
        return self._total

    def _next(self) -> None:
        """Leave this stage for the next that has any steps."""
        state, joint = self._state, self.schedule.is_joint
        if state.stage == "estimate" and not joint:
            self._prune()
        elif state.stage == "explore" and (self._exchange() if joint else self._grow()):
            state.stage, state.left = "final", 0
            return
        stage, steps = self.schedule.stage_after(state.stage, state.stretch)
        if stage == "explore":
            slim = self._opened()
            wide = self.chooser.reactivated(slim.plan, state.cycle)
            self._networks.explore(slim, wide)
            self._accumulate(wide)
        elif stage == "estimate" and not joint:
            self._accumulate(self.plan)
        state.stage, state.left = stage, steps

    def _prune(self) -> None:
        """Stage 2: what scores least leaves the active structure, down to budget * (1 - omega)."""
        state, slim = self._state, self._opened()
        scores = state.kept_scores = self._scores(slim)
        self._networks.put_away(slim)
        wanted = self.schedule.budget_at(state.cycle, self.chooser.fraction)
        omega = self.schedule.omega_at(state.cycle)
        state.before = slim.plan
        state.plan = on_rank_zero(lambda: self.chooser.pruned(scores, wanted, omega, slim.plan))
        self._networks.exchange(slim, state.plan)

    def _grow(self) -> bool:
        """Stage 5: the best of what was explored joins the active structure, up to the budget.

        Gives whether this update was the last.
        """
        state, networks = self._state, self._networks
        slim, wide = networks.both()
        scores = self._scores(wide)
        networks.take_back()

        def grow(fraction: float) -> Allocation:
            try:
                return self.chooser.grown(scores, fraction, slim.plan, wide.plan)
            except InfeasibleError:  # even what is active costs more
                return self.chooser.best(state.kept_scores, fraction, slim.plan)

        plan, last = self._chosen(grow)
        self._change(slim, wide, plan, slim.plan.keep)
        return last

    def _exchange(self) -> bool:
        """The best of all channels that explored join; gives whether this update was the last."""
        state, networks = self._state, self._networks
        slim, wide = networks.both()
        scores = state.kept_scores = self._scores(wide)
        networks.take_back()
        state.before = slim.plan
        plan, last = self._chosen(lambda share: self.chooser.exchanged(scores, share, wide.plan))
        stayed = {g: sorted({*kept} & {*plan.keep[g]}) for g, kept in slim.plan.keep.items()}
        self._change(slim, wide, plan, stayed)
        return last

    def _chosen(self, update: Update) -> tuple[ChannelPlan, bool]:
        """The structure after this cycle by ``update``, and whether the cycle was the last."""
        state, limit = self._state, self.chooser.fraction
        wanted = self.schedule.budget_at(state.cycle, limit)
        plan = on_rank_zero(lambda: update(wanted)).plan
        last = self._is_last(plan)
        if last and self.settle is not None:
            plan = self.settle(update, lambda _: self.chooser.smallest(state.kept_scores))
        elif last and wanted > limit:  # cycles took longer than planned
            plan = on_rank_zero(lambda: update(limit)).plan
        return plan, last

    def _change(
        self, slim: Network, wide: Network, plan: ChannelPlan, stayed: Mapping[str, Sequence[int]]
    ) -> None:
        """Train the structure ``plan`` from now on; ``stayed`` is what of the old one is in it."""
        state, networks = self._state, self._networks
        self._record(stayed, plan)
        state.plan = plan
        networks.change_grown(slim, plan)
        networks.restore_modes()
        networks.exchange(wide, plan)
        state.cycle += 1

    def _scores(self, network: Network) -> Scores:
        """What was accumulated on ``network``, in the dense network's channels.

        Channels that it lacks score zero, and less than any that it has.
        """
        total, self._total = self._total, None
        if total is None:
            raise UsageError("no scores were accumulated")
        if not total.batches and self.criterion.needs_gradients:
            raise TrainingError(
                f"no step of IEE's cycle {self._state.cycle} had finite {self.criterion.name} "
                "scores; lower the learning rate or set `clip_norm`"
            )
        if not total.batches:  # weights alone are scored once, as they are at the stage's end
            total.add(network.module)
        scores = total.scores()
        device = next(network.module.parameters()).device
        values = {g: torch.from_numpy(v.copy()).to(device) for g, v in scores.by_group.items()}
        average_(values.values())
        agreed = {group: present.cpu().numpy() for group, present in values.items()}
        return lifted(replace(scores, by_group=agreed), network.plan)

    def _is_last(self, plan: ChannelPlan) -> bool:
        """Whether no other update follows this one; sets the length of the next."""
        state, fraction = self._state, self.chooser.fraction
        same = overlap(state.before or plan, plan)
        at_budget = self.schedule.budget_at(state.cycle, fraction) <= fraction * (1 + 1e-9)
        state.stretch = self.schedule.stretch_after(state.stretch, same) if at_budget else 1
        if self.schedule.stop_iou is not None and at_budget and same >= self.schedule.stop_iou:
            return True
        fitting = self.schedule.fitting(state.stretch, state.done)
        state.stretch = max(1, fitting)
        return not fitting

    def _record(self, stayed: Mapping[str, Sequence[int]], plan: ChannelPlan) -> None:
        state = self._state
        state.history.record(
            state.before or plan,
            stayed,
            plan,
            {
                "step": state.done,
                "cycle": state.cycle,
                "omega": self.schedule.omega_at(state.cycle),
                "predicted_ratio": self.chooser.ratio(plan),
                "relative_flops": state.work / self.schedule.steps,
                "widths": {g.id: len(plan.keep[g.id]) for g in self.graph.groups if g.prunable},
            },
        )

    # --- going on after a restart -------------------------------------------------------------

    def _settings(self) -> Facts:
        """What a run and the one that goes on from it must have in common."""
        own = {
            "budget": self.chooser.fraction,
            "kind": self.chooser.kind,
            "criterion": self.criterion.name,
        }
        settings = {**asdict(self.schedule), "grow": self.schedule.growth, **own}
        if not self.schedule.is_joint:  # as before there was another
            del settings["exchange"]
        return settings

    def state(self) -> Saved:
        """Everything a resumed run needs besides the dense model and the optimizer's own state."""
        slim, saved = self._opened(), Saved.empty()
        saved.facts["settings"] = self._settings()
        write(self._state, saved, state_forms(self.graph, self.criterion.name))
        self._networks.write(saved, slim)
        if self._total is not None:
            saved.facts["batches"] = self._total.batches
            NumbersForm("sums").write(self._total.sums, saved)
        return saved

    @torch.no_grad()
    def load_state(self, tensors_: Tensors, facts: Facts) -> None:
        """Take up where :meth:`state` left off; the dense model has its values already."""
        check_settings("IEE", facts["settings"], self._settings())
        saved = Saved(tensors_, facts)
        read(self._state, saved, state_forms(self.graph, self.criterion.name))
        self._networks.read(saved, self._opened(), self.plan)
        self._total = None
        if "sums" in facts:
            total = self._accumulate(self._current().plan)
            total.resume(int(facts["batches"]), NumbersForm("sums").read(saved))
