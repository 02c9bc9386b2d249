"""Iterative exploitation and exploration (IEE, arXiv 2502.03658) for channels, under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.allocation import Allocator
from prunekit.budget import Budget
from prunekit.costs import CostModel, total
from prunekit.criteria import Accumulator, Criterion, Taylor
from prunekit.errors import InfeasibleError, TrainingError, UsageError
from prunekit.graph import ChannelGraph
from prunekit.latency import LatencyTable
from prunekit.plan import ChannelPlan, narrowed
from prunekit.ranks import average_, from_main
from prunekit.scores import Scores
from prunekit.sparsify.schedule import STRETCH, IEESchedule
from prunekit.sparsify.solve import Allocation, allocate, cost_model, uniform
from prunekit.sparsify.store import Network, State, Store, tensors

Update = Callable[[float], Allocation]
"""An update of the structure as a function of the budget, a share of dense."""
Settle = Callable[[Update, Update], ChannelPlan]
"""Given the last update, and the smallest structure (for any budget), the plan to end with."""

PRESENT = 1e-30
"""Ranks a channel that scores zero above one that was not there."""
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
        self.graph, self.schedule = graph, schedule
        self.criterion: Criterion = criterion or Taylor()
        self.kind, self.solver, self.granularity = budget.kind, solver, granularity
        self.costs, self.block = cost_model(costs, budget, granularity)
        dense = total(graph, {}, self.costs)
        self.fraction = budget.limit(dense) / dense
        if self.fraction >= 1:
            raise UsageError(f"{budget} is met by the dense network; there is nothing to prune")
        self.settle = settle
        self.history: list[dict[str, Any]] = []
        self.work = 0.0
        """Training so far, in steps of the dense network."""
        self._store = Store(model)
        self._optimizer: Optimizer | None = None
        self._rows: list[dict[str, Any]] = []
        self._dense_macs = graph.macs({})
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
        self._frozen: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None
        self._grown: dict[str, list[int]] = {}
        self._ever_grown: dict[str, list[int]] = {}

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
            self._plan = self._first_plan()
        return self._plan

    @property
    def stage(self) -> str:
        """``warm-up``, ``estimate``, ``improve``, ``explore`` or ``final``."""
        return self._stage

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step after a backward pass of :attr:`model`, which may change it."""
        if self._optimizer is None:
            self._attach(optimizer)
        if optimizer is not self._optimizer:
            raise UsageError("IEE was begun with another optimizer; give it the same at each step")
        trained = self.model
        average_([p.grad for p in trained.parameters() if p.grad is not None])
        self.after_backward(trained, self._done)
        optimizer.step()
        self.after_step(trained, optimizer, self._done)
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
            parameters, free, _ = self._frozen
            pairs = [
                (p.grad, mask)
                for p, mask in zip(parameters, free, strict=True)
                if p.grad is not None
            ]
            if pairs:  # not so where nothing of a network reads the loss
                torch._foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Put the active structure back while exploring, and go to the next stage when due."""
        del model, optimizer, step
        if self._frozen is not None:
            parameters, free, values = self._frozen
            # exact: x * 0 + value on frozen elements, x * 1 + 0 on the others
            torch._foreach_mul_(parameters, free)
            torch._foreach_add_(parameters, values)
        widths = (self._wide or self._opened()).plan.widths
        self.work += self.graph.macs(widths) / self._dense_macs
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

    def rows(self) -> list[dict[str, Any]]:
        """One record per update of the structure since the last call, for the log."""
        found, self._rows = self._rows, []
        return found

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

    def _first_plan(self) -> ChannelPlan:
        if self.schedule.start == "dense":
            return ChannelPlan.dense(self.graph)
        seed, block = self.schedule.seed, self.block
        return from_main(lambda: uniform(self.graph, self.costs, self.fraction, block, seed))

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
        wanted = self.schedule.budget_at(cycle, self.fraction) * (1 - self.schedule.omega_at(cycle))
        allocation = from_main(lambda: self._within(wanted, small.plan))
        self._before = small.plan
        self._plan = allocation.plan
        self._small = self._like(small, self._store.open(self._plan))
        self._store.lend(self._small, self._store.state_for(self._small))

    @staticmethod
    def _like(old: Network, new: Network) -> Network:
        """``new`` with every module in training or evaluation mode as in ``old``."""
        modules = dict(old.module.named_modules())
        for name, module in new.module.named_modules():
            module.training = modules[name].training
        return new

    def _within(self, fraction: float, active: ChannelPlan) -> Allocation:
        """The best of the active channels at ``fraction`` of dense, or the least there may be."""
        floors = {
            g.id: min(len(active.keep[g.id]), int(np.ceil(self.schedule.floor * g.size)))
            for g in self.graph.groups
        }
        with suppress(InfeasibleError):
            return self._solve(self._kept_scores, fraction, active.widths, floors)
        with suppress(InfeasibleError):
            return self._solve(self._kept_scores, fraction, active.widths, {})
        return self._smallest()

    def _smallest(self) -> Allocation:
        """Every group at its least width."""
        least = {g.id: g.widths(self.block)[0] for g in self.graph.groups}
        return self._solve(self._kept_scores, 1.0, least, {})

    def _solve(
        self,
        scores: Scores,
        fraction: float,
        at_most: Mapping[str, int],
        at_least: Mapping[str, int],
        locked: Mapping[str, Sequence[int]] | None = None,
    ) -> Allocation:
        return allocate(
            self.graph,
            scores,
            self.costs,
            Budget(self.kind, fraction, relative=True, text=f"{fraction:.1%}"),
            self.solver,
            granularity=self.block,
            at_most=at_most,
            at_least=at_least,
            locked=locked,
        )

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
        self._open_wide(self._reactivated())
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
                    module.eval()
        if self.schedule.freeze:
            live = dict(small.module.named_parameters())
            parameters: list[Tensor] = []
            free: list[Tensor] = []
            values: list[Tensor] = []
            for name, parameter in wide.module.named_parameters():
                part = small.part(name).within(wide.part(name))
                mask, value = torch.ones_like(parameter), torch.zeros_like(parameter)
                part.put_(mask, torch.zeros_like(live[name]))
                part.put_(value, live[name].detach())
                parameters.append(parameter)
                free.append(mask)
                values.append(value)
            self._frozen = (parameters, free, values)
        self._total = Accumulator(narrowed(self.graph, plan), self.criterion)

    def _reactivated(self) -> ChannelPlan:
        """The active structure with a sample of the others; a function of seed and cycle."""
        share, active = self.schedule.reactivate, self.plan
        if share == 1:
            return ChannelPlan.dense(self.graph)
        rng = np.random.default_rng([self.schedule.seed, self._cycle])
        keep: dict[str, Sequence[int]] = {}
        for group in self.graph.groups:
            asleep = np.setdiff1d(np.arange(group.size), active.keep[group.id])
            step = int(np.lcm(self.block, group.granularity))
            count = min(len(asleep), step * max(1, round(share * len(asleep) / step)))
            chosen = rng.permutation(asleep)[:count].tolist()
            keep[group.id] = [*active.keep[group.id], *chosen]
        return ChannelPlan.from_keep(self.graph, keep)

    def _grow(self) -> None:
        """Stage 5: the best of what was explored joins the active structure, up to the budget."""
        small, wide = self._opened(), self._wide_network()
        scores = self._scores(wide.plan, wide.module)
        state = self._store.lent(wide)
        self._take_back(small, wide, state)
        self._wide, self._frozen = None, None

        def grow(fraction: float) -> Allocation:
            try:
                return self._solve(scores, fraction, wide.plan.widths, {}, small.plan.keep)
            except InfeasibleError:  # even what is active costs more
                return self._solve(self._kept_scores, fraction, small.plan.widths, {})

        wanted = self.schedule.budget_at(self._cycle, self.fraction)
        try:
            plan = from_main(lambda: grow(wanted)).plan
        except InfeasibleError:
            plan = small.plan
        last = self._is_last(plan)
        if last and self.settle is not None:
            plan = self.settle(grow, lambda _: self._smallest())
        self._record(small.plan, plan)
        self._plan = plan
        self._change_grown(small, plan)
        self._small = self._like(small, self._store.open(plan))
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
        for module, cut in small.plan.cuts.items():
            weight = held.get(f"{module}.weight")
            left = plan.cuts.get(module)
            back = sorted({*cut.in_} - {*(left.in_ if left else ())})
            if weight is not None and back and small.part(f"{module}.weight").in_ is not None:
                weight.data[:, back] = 0

    # --- when it ends, and what is told of it -------------------------------------------------

    def _is_last(self, plan: ChannelPlan) -> bool:
        """Whether no other update follows this one; sets the length of the next."""
        schedule = self.schedule
        same = overlap(self._before or plan, plan)
        if schedule.adaptive:
            self._stretch = min(STRETCH, 2 * self._stretch) if same >= SETTLED else 1
        at_budget = schedule.budget_at(self._cycle, self.fraction) <= self.fraction * (1 + 1e-9)
        if schedule.stop_iou is not None and at_budget and same >= schedule.stop_iou:
            return True
        estimate, improve, explore = schedule.lengths
        left = schedule.until * schedule.steps - self._done - explore
        while self._stretch > 1 and (estimate + improve) * self._stretch > left:
            self._stretch //= 2
        return (estimate + improve) * self._stretch > left

    def _record(self, pruned: ChannelPlan, plan: ChannelPlan) -> None:
        """Note this update: overlap, what grew, and how many of the last grown are still there."""
        survived = None
        if count := sum(map(len, self._grown.values())):
            still = sum(len({*c} & {*pruned.keep[g]}) for g, c in self._grown.items())
            survived = still / count
        self._grown = {
            group: sorted({*kept} - {*pruned.keep[group]}) for group, kept in plan.keep.items()
        }
        for group, channels in self._grown.items():
            self._ever_grown[group] = sorted({*self._ever_grown.get(group, ()), *channels})
        row = {
            "stage": "update",
            "step": self._done,
            "cycle": self._cycle,
            "omega": self.schedule.omega_at(self._cycle),
            "predicted_ratio": total(self.graph, plan.widths, self.costs)
            / total(self.graph, {}, self.costs),
            "iou": overlap(self._before or plan, plan),
            "grown": sum(map(len, self._grown.values())),
            "survival": survived,
            "relative_flops": self.work / self.schedule.steps,
            "widths": {g.id: len(plan.keep[g.id]) for g in self.graph.groups if g.prunable},
        }
        self.history.append(row)
        self._rows.append(row)

    def survival(self) -> float | None:
        """The share of all channels ever grown that are in the structure now; None before any."""
        count = sum(map(len, self._ever_grown.values()))
        still = sum(len({*c} & {*self.plan.keep[g]}) for g, c in self._ever_grown.items())
        return still / count if count else None

    # --- going on after a restart -------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What a run and the one that goes on from it must have in common."""
        own = {"budget": self.fraction, "kind": self.kind, "criterion": self.criterion.name}
        return {**asdict(self.schedule), **own}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs besides the dense model and the optimizer's own state."""
        small = self._opened()
        found = {f"small.{n}": t for n, t in tensors(small.module).items()}
        if self._wide is not None:
            found |= {f"wide.{n}": t for n, t in tensors(self._wide.module).items()}
        found |= {f"mru.{n}": t for n, t in self._mru.items()}
        numbers: dict[str, Any] = {}
        for kind, state in (("state", self._store.state), ("small_state", self._small_state)):
            for name, entry in state.items():
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        found[f"{kind}.{key}.{name}"] = value
                    elif value is not None:
                        numbers[f"{kind}.{key}.{name}"] = value
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
            "grown": self._grown,
            "ever_grown": self._ever_grown,
            "history": self.history,
        }
        if self._total is not None:
            facts["batches"] = self._total.batches
            facts["sums"] = {g: v.tolist() for g, v in self._total.sums.items()}
        return found, facts

    @torch.no_grad()
    def load_state(self, tensors_: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; the dense model has its values already."""
        for name, value in facts.get("settings", {}).items():
            if (now := self._settings().get(name)) != value:
                raise UsageError(
                    f"the IEE to go on with was made with `{name}` {value!r}, now it is {now!r}; "
                    "use the same to resume"
                )
        self._left, self._done = int(facts["left"]), int(facts["done"])
        self._cycle, self._stretch = int(facts["cycle"]), int(facts["stretch"])
        self.work, self.history = float(facts["work"]), list(facts["history"])
        self._grown, self._ever_grown = dict(facts["grown"]), dict(facts["ever_grown"])
        self._stage = str(facts["stage"])
        scores = {g: np.array(v) for g, v in facts["kept_scores"].items()}
        self._kept_scores = Scores(scores, self.criterion.name)
        plan = ChannelPlan.from_keep(self.graph, facts["keep"])
        self._plan = replace(plan, predicted=dict(facts.get("predicted", {})))
        before = facts["before"]
        self._before = None if before is None else ChannelPlan.from_keep(self.graph, before)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors_.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = tensor.clone()
        numbers: dict[str, dict[str, Any]] = {}
        for name, value in facts["numbers"].items():
            kind, _, rest = name.partition(".")
            numbers.setdefault(kind, {})[rest] = value
        states = {
            kind: _by_name({**parts.get(kind, {}), **numbers.get(kind, {})})
            for kind in ("state", "small_state")
        }
        self._store.state, self._small_state = states["state"], states["small_state"]
        self._mru = parts.get("mru", {})
        self._total = None
        self._small = self._like(self._opened(), self._store.open(self._plan))
        for name, tensor in tensors(self._small.module).items():
            tensor.data.copy_(parts["small"][name])
        self._wide = self._frozen = None
        if facts["wide"] is not None:
            self._open_wide(ChannelPlan.from_keep(self.graph, facts["wide"]))
            for name, tensor in tensors(self._wide_network().module).items():
                tensor.data.copy_(parts["wide"][name])
        elif "sums" in facts:
            self._total = Accumulator(narrowed(self.graph, self._plan), self.criterion)
        if self._total is not None:
            self._total.batches = int(facts["batches"])
            for group, values in facts["sums"].items():
                self._total.sums[group] = np.array(values)
        self._store.lend(self._wide or self._small, {})


def overlap(one: ChannelPlan, other: ChannelPlan) -> float:
    """Intersection over union of two structures, counted in channels of all groups."""
    both = sum(len({*kept} & {*other.keep[g]}) for g, kept in one.keep.items())
    either = sum(len({*kept} | {*other.keep[g]}) for g, kept in one.keep.items())
    return both / either


def _lists(plan: ChannelPlan) -> dict[str, list[int]]:
    return {group: list(kept) for group, kept in plan.keep.items()}


def _by_name(found: Mapping[str, Any]) -> State:
    state: State = {}
    for name, value in found.items():
        key, _, parameter = name.partition(".")
        step = isinstance(value, Tensor) and value.ndim == 0
        # optimizers count steps on the CPU
        state.setdefault(parameter, {})[key] = value.cpu() if step else value
    return state
