"""Iterative exploitation and exploration (IEE, arXiv 2502.03658) for channels, under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.allocation.allocate import Allocation, cost_model
from prunekit.allocation.costs import CostModel
from prunekit.allocation.solvers import Allocator
from prunekit.core.budget import Budget
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, Cut, narrowed
from prunekit.core.scores import PRESENT, Scores
from prunekit.criteria import Accumulator, Criterion, Taylor
from prunekit.latency import LatencyTable
from prunekit.networks.masking import zero_
from prunekit.networks.slimming import cut_axes
from prunekit.pruning.dense_store import Frozen, Network, Store, tensors
from prunekit.pruning.history import History, overlap
from prunekit.pruning.iee_schedule import STRETCH, IEESchedule
from prunekit.pruning.iee_structure import Updates
from prunekit.support.errors import InfeasibleError, TrainingError, UsageError
from prunekit.support.processes import average_, on_rank_zero
from prunekit.train.method_state import State, check_settings, named, pack, unpack
from prunekit.train.step import take_step

Update = Callable[[float], Allocation]
"""An update of the structure as a function of the budget, a share of dense."""
Settle = Callable[[Update, Update], ChannelPlan]
"""Given the last update, and the smallest structure (for any budget), the plan to end with."""

PATIENCE = 16
"""Further steps that a stage waits for finite scores."""
SETTLED = 0.95
"""Overlap of two structures in a row from which ``adaptive`` lengthens the next cycle."""


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
        self.updates = Updates(graph, prices, budget.kind, schedule, solver, block)
        self.fraction = budget.limit(self.updates.dense_cost) / self.updates.dense_cost
        if self.fraction >= 1:
            raise UsageError(f"{budget} is met by the dense network; there is nothing to prune")
        self.settle = settle
        self.work = 0.0
        """Training so far, in steps of the dense network."""
        self._store = Store(model)
        self._optimizer: Optimizer | None = None
        self._history = History()
        self._dense_macs = graph.macs({})
        self._paced: tuple[Network, float] | None = None
        self._done = 0
        self._cycle = 0
        self._stage = "warm-up" if schedule.warm else "estimate"
        self._left = schedule.warm or schedule.lengths[0]
        self._stretch = 1
        self._scoreless = 0
        self._small: Network | None = None
        self._wide: Network | None = None
        self._small_state: State = {}
        self._mru: dict[str, Tensor] = {}
        self._plan: ChannelPlan | None = None
        self._before: ChannelPlan | None = None
        """The structure at the start of the cycle."""
        self._kept_scores = Scores({}, self.criterion.name)
        self._total: Accumulator | None = None
        self._frozen: Frozen | None = None
        self._modes: dict[nn.Module, bool] = {}
        """Of norms that use their running statistics while exploring, as they were."""

    # --- what a user of the class sees --------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The network to run next."""
        return (self._wide or self._opened()).module

    @property
    def slim(self) -> nn.Module:
        """The active structure as a physically slim network."""
        return self._opened().module

    @property
    def plan(self) -> ChannelPlan:
        """The active structure."""
        if self._plan is None:
            self._plan = on_rank_zero(lambda: self.updates.first(self.fraction))
        return self._plan

    @property
    def stage(self) -> str:
        """``warm-up``, ``estimate``, ``improve``, ``explore`` or ``final``."""
        return self._stage

    def step(
        self, optimizer: Optimizer, clip_norm: float = 0.0, scaler: GradScaler | None = None
    ) -> None:
        """One optimizer step after a backward pass of :attr:`model`, which may change it.

        ``clip_norm`` above 0 limits the norm of the gradients of what is trained; clipped before,
        those of what is frozen while exploring would count. ``scaler`` is the one that scaled the
        loss, in mixed precision; it is unscaled, stepped and updated here.
        """
        if self._optimizer is None:
            self._attach(optimizer)
        if optimizer is not self._optimizer:
            raise UsageError("IEE was begun with another optimizer; give it the same at each step")
        trained = self.model
        if all(parameter.grad is None for parameter in trained.parameters()):
            raise UsageError(
                "no parameter of `iee.model` has a gradient; run the loss of every step on "
                "`iee.model`, which is another network from time to time"
            )
        take_step(self, trained, optimizer, self._done, clip_norm, scaler)
        self.model.zero_grad(set_to_none=True)

    # --- the training loop's calls ------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over the dense ``model``'s parameters."""
        if model is not self._store.model:
            raise UsageError("IEE was made for another model; give it the same one")
        if not self._done:  # what was opened before may have other values, modes or devices
            self._small = self._total = None
        self._attach(optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        self._store.attach(optimizer)
        self._optimizer = optimizer
        network = self._wide or self._opened()
        self._store.lend(network, self._store.gathered(network))

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
        if self._stage != "explore":
            return
        if not self.schedule.exploring:
            model.zero_grad(set_to_none=True)
        elif self._frozen is not None:
            self._frozen.clear_gradients_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Put the active structure back while exploring, and go to the next stage when due."""
        del model, optimizer, step
        if self._frozen is not None:
            self._frozen.put_back_()
        self.work += self._pace()
        self._done += 1
        self._left -= 1
        if self._left == 0 and self._stage != "final":
            total = self._total
            if total is not None and self.criterion.needs_gradients and not total.batches:
                # mixed precision lets gradients overflow now and then
                self._scoreless += 1
                self._left = int(self._scoreless <= PATIENCE)
            if self._left == 0:
                self._scoreless = 0
                self._next()

    def _pace(self) -> float:
        """A step's work in steps of the dense network, counted once per network."""
        network = self._wide or self._opened()
        if self._paced is None or self._paced[0] is not network:
            self._paced = network, self.graph.macs(network.plan.widths) / self._dense_macs
        return self._paced[1]

    def rows(self) -> list[dict[str, Any]]:
        """One record per update of the structure since the last call, for the log."""
        return self._history.new()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per update of the structure so far."""
        return self._history.rows

    # --- stages -------------------------------------------------------------------------------

    def _next(self) -> None:
        """Leave this stage for the next that has any steps."""
        _, improve, explore = self.schedule.lengths
        if self._stage == "warm-up":
            self._enter("estimate")
        elif self._stage == "estimate":
            self._prune()
            if improve:
                self._enter("improve", improve * self._stretch)
            else:
                self._explore(explore)
        elif self._stage == "improve":
            self._explore(explore)
        else:
            self._grow()

    def _enter(self, stage: str, steps: int | None = None) -> None:
        self._stage = stage
        self._left = self.schedule.lengths[0] * self._stretch if steps is None else steps
        if stage == "estimate":
            self._total = Accumulator(narrowed(self.graph, self.plan), self.criterion)

    def _opened(self) -> Network:
        """The active structure, cut on first use."""
        if self._small is None:
            self._small = self._store.open(self.plan)
            if self._stage == "estimate" and self._total is None:
                self._total = Accumulator(narrowed(self.graph, self.plan), self.criterion)
        return self._small

    def _scores(self, of: ChannelPlan, module: nn.Module) -> Scores:
        """What was accumulated on a network of structure ``of``, in the dense network's channels.

        Channels that it lacks score zero, and less than any that it has.
        """
        total, self._total = self._total, None
        if total is None:
            raise UsageError("no scores were accumulated")
        if not total.batches and self.criterion.needs_gradients:
            raise TrainingError(
                f"no step of IEE's cycle {self._cycle} had finite {self.criterion.name} scores; "
                "lower the learning rate or set `clip_norm`"
            )
        if not total.batches:  # weights alone are scored once, as they are at the stage's end
            total.add(module)
        found = total.scores()
        device = next(module.parameters()).device
        values = {g: torch.from_numpy(v.copy()).to(device) for g, v in found.by_group.items()}
        average_(values.values())
        lifted = {}
        for group, there in values.items():
            dense = np.zeros(self.graph.group(group).size)
            dense[list(of.keep[group])] = there.cpu().numpy() + PRESENT
            lifted[group] = dense
        return Scores(lifted, found.criterion, found.batches)

    def _prune(self) -> None:
        """Stage 2: what scores least leaves the active structure, down to budget * (1 - omega)."""
        small = self._opened()
        self._kept_scores = self._scores(small.plan, small.module)
        cycle, state = self._cycle, self._store.lent(small)
        self._put_away(small, state)
        wanted = self.schedule.budget_at(cycle, self.fraction)
        omega, scores = self.schedule.omega_at(cycle), self._kept_scores
        self._before = small.plan
        self._plan = on_rank_zero(lambda: self.updates.pruned(scores, wanted, omega, small.plan))
        self._small = self._like(small, self._store.open(self._plan))
        self._store.lend(self._small, self._store.state_for(self._small))

    @staticmethod
    def _like(old: Network, new: Network) -> Network:
        """``new`` with every module in training or evaluation mode as in ``old``."""
        modules = dict(old.module.named_modules())
        for name, module in new.module.named_modules():
            module.training = modules[name].training
        return new

    def _put_away(self, small: Network, state: State) -> None:
        """Write the active structure's values and optimizer state back."""
        self._agree(small)
        self._store.write(small)
        self._store.write_state(small, state)
        if "mru" in (self.schedule.source, self.schedule.grow):
            if not self._mru:
                held = tensors(self._store.model)
                self._mru = {name: t.detach().clone() for name, t in held.items()}
            for name, tensor in tensors(small.module).items():
                small.part(name).put_(self._mru[name], tensor.detach())

    @staticmethod
    def _agree(network: Network) -> None:
        """Each process has normalised other batches; their running statistics become one."""
        average_([b for b in network.module.buffers() if b.is_floating_point()])

    def _explore(self, steps: int) -> None:
        """Stage 4 begins: bring inactive channels back, with the active structure frozen."""
        small = self._opened()
        self._small_state = self._store.lent(small)
        self._put_away(small, self._small_state)
        if self.schedule.source == "mru":
            for name, tensor in tensors(self._store.model).items():
                tensor.data.copy_(self._mru[name])
        self._open_wide(self.updates.reactivated(small.plan, self._cycle))
        wide = self._wide_network()
        fresh = self.schedule.momentum == "zero"
        self._store.lend(wide, {} if fresh else self._store.state_for(wide))
        self._enter("explore", steps)

    def _wide_network(self) -> Network:
        if self._wide is None:
            raise UsageError("nothing is being explored")
        return self._wide

    def _open_wide(self, plan: ChannelPlan) -> None:
        small = self._opened()
        self._wide = wide = self._like(small, self._store.open(plan))
        if self.schedule.norm == "running":
            for module in wide.module.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    self._modes[module] = module.training
                    module.eval()
        if self.schedule.freeze:
            self._frozen = Frozen(small, wide)
        self._total = Accumulator(narrowed(self.graph, plan), self.criterion)

    def _grow(self) -> None:
        """Stage 5: the best of what was explored joins the active structure, up to the budget."""
        small, wide = self._opened(), self._wide_network()
        scores = self._scores(wide.plan, wide.module)
        state = self._store.lent(wide)
        self._take_back(small, wide, state)
        self._wide, self._frozen = None, None

        def grow(fraction: float) -> Allocation:
            try:
                return self.updates.grown(scores, fraction, small.plan, wide.plan)
            except InfeasibleError:  # even what is active costs more
                return self.updates.best(self._kept_scores, fraction, small.plan)

        wanted = self.schedule.budget_at(self._cycle, self.fraction)
        plan = on_rank_zero(lambda: grow(wanted)).plan
        last = self._is_last(plan)
        if last and self.settle is not None:
            plan = self.settle(grow, lambda _: self.updates.smallest(self._kept_scores))
        elif last and wanted > self.fraction:  # cycles took longer than planned
            plan = on_rank_zero(lambda: grow(self.fraction)).plan
        self._record(small.plan, plan)
        self._plan = plan
        self._change_grown(small, plan)
        for module, mode in self._modes.items():
            module.training = mode
        self._modes = {}
        self._small = self._like(wide, self._store.open(plan))
        self._store.lend(self._small, self._store.state_for(self._small))
        self._small_state = {}
        self._cycle += 1
        if last:
            self._stage, self._left = "final", 0
        else:
            self._enter("estimate")

    def _take_back(self, small: Network, wide: Network, state: State) -> None:
        """Write both networks back: the explored values, and the frozen structure as it was."""
        kept_state = self.schedule.momentum == "kept"
        self._agree(wide)
        self._store.write(wide)
        if kept_state:
            self._store.write_state(wide, state)
        else:
            self._store.state = {}
        if self.schedule.freeze:
            self._store.write(small)
        if self.schedule.freeze or not kept_state:
            self._store.write_state(small, self._small_state)

    def _change_grown(self, small: Network, plan: ChannelPlan) -> None:
        """What grown channels start from, where that is not what they explored."""
        if self.schedule.grow == "explored":
            return
        held = tensors(self._store.model)
        if self.schedule.grow == "mru":
            grown = self._store.open(plan)
            for name, tensor in held.items():
                part, active = grown.part(name), small.part(name)
                trained = active.take(tensor)
                part.put_(tensor.data, part.take(self._mru[name]))
                active.put_(tensor.data, trained)
            return
        modules = dict(self._store.model.named_modules())
        for name, cut in small.plan.cuts.items():
            back = Cut(in_=tuple(sorted({*cut.in_} - {*plan.cuts.get(name, Cut()).in_})))
            zero_(modules[name], cut_axes(modules[name], back, name))

    # --- when it ends, and what is told of it -------------------------------------------------

    def _is_last(self, plan: ChannelPlan) -> bool:
        """Whether no other update follows this one; sets the length of the next."""
        schedule = self.schedule
        same = overlap(self._before or plan, plan)
        at_budget = schedule.budget_at(self._cycle, self.fraction) <= self.fraction * (1 + 1e-9)
        if schedule.adaptive:
            settled = at_budget and same >= SETTLED
            self._stretch = min(STRETCH, 2 * self._stretch) if settled else 1
        if schedule.stop_iou is not None and at_budget and same >= schedule.stop_iou:
            return True
        estimate, improve, explore = schedule.lengths
        left = schedule.last_step - self._done - explore
        while self._stretch > 1 and (estimate + improve) * self._stretch > left:
            self._stretch //= 2
        return (estimate + improve) * self._stretch > left

    def _record(self, pruned: ChannelPlan, plan: ChannelPlan) -> None:
        facts = {
            "step": self._done,
            "cycle": self._cycle,
            "omega": self.schedule.omega_at(self._cycle),
            "predicted_ratio": self.updates.ratio(plan),
            "relative_flops": self.work / self.schedule.steps,
            "widths": {g.id: len(plan.keep[g.id]) for g in self.graph.groups if g.prunable},
        }
        self._history.record(self._before or plan, pruned, plan, facts)

    def survival(self) -> float | None:
        """The share of all channels ever grown that are in the structure now; None before any."""
        return self._history.survival(self.plan)

    # --- going on after a restart -------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What a run and the one that goes on from it must have in common."""
        own = {"budget": self.fraction, "kind": self.updates.kind, "criterion": self.criterion.name}
        return {**asdict(self.schedule), **own}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs besides the dense model and the optimizer's own state."""
        small = self._opened()
        found = {f"small.{n}": t for n, t in tensors(small.module).items()}
        if self._wide is not None:
            found |= {f"wide.{n}": t for n, t in tensors(self._wide.module).items()}
        found |= {f"mru.{n}": t for n, t in self._mru.items()}
        states, numbers = pack({"state": self._store.state, "small_state": self._small_state})
        found |= states
        facts = {
            "settings": self._settings(),
            "stage": self._stage,
            "numbers": numbers,
            "left": self._left,
            "done": self._done,
            "cycle": self._cycle,
            "stretch": self._stretch,
            "work": self.work,
            "keep": _lists(small.plan),
            "predicted": small.plan.predicted,
            "wide": None if self._wide is None else _lists(self._wide.plan),
            "before": None if self._before is None else _lists(self._before),
            "kept_scores": {g: list(map(float, v)) for g, v in self._kept_scores.by_group.items()},
            "scoreless": self._scoreless,
            "history": self._history.state(),
        }
        if self._total is not None:
            facts["batches"] = self._total.batches
            facts["sums"] = {g: v.tolist() for g, v in self._total.sums.items()}
        return found, facts

    @torch.no_grad()
    def load_state(self, tensors_: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; the dense model has its values already."""
        check_settings("IEE", facts["settings"], self._settings())
        self._left, self._done = int(facts["left"]), int(facts["done"])
        self._cycle, self._stretch = int(facts["cycle"]), int(facts["stretch"])
        self.work, self._stage = float(facts["work"]), str(facts["stage"])
        self._scoreless = int(facts["scoreless"])
        self._history.load_state(facts["history"])
        scores = {g: np.array(v) for g, v in facts["kept_scores"].items()}
        self._kept_scores = Scores(scores, self.criterion.name)
        plan = ChannelPlan.from_keep(self.graph, facts["keep"])
        self._plan = replace(plan, predicted=dict(facts["predicted"]))
        before = facts["before"]
        self._before = None if before is None else ChannelPlan.from_keep(self.graph, before)
        self._store.state = unpack("state", tensors_, facts["numbers"])
        self._small_state = unpack("small_state", tensors_, facts["numbers"])
        self._mru = {name: t.clone() for name, t in named(tensors_, "mru").items()}
        self._total = None
        self._small = self._like(self._opened(), self._store.open(self._plan))
        for name, tensor in tensors(self._small.module).items():
            tensor.data.copy_(tensors_[f"small.{name}"])
        self._wide = self._frozen = None
        self._modes = {}
        if facts["wide"] is not None:
            self._open_wide(ChannelPlan.from_keep(self.graph, facts["wide"]))
            for name, tensor in tensors(self._wide_network().module).items():
                tensor.data.copy_(tensors_[f"wide.{name}"])
        elif "sums" in facts:
            self._total = Accumulator(narrowed(self.graph, self._plan), self.criterion)
        if self._total is not None:
            self._total.batches = int(facts["batches"])
            for group, values in facts["sums"].items():
                self._total.sums[group] = np.array(values)
        self._store.lend(self._wide or self._small, {})


def _lists(plan: ChannelPlan) -> dict[str, list[int]]:
    return {group: list(kept) for group, kept in plan.keep.items()}
