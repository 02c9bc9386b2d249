"""IEE for weights (arXiv 2502.03658): explore with the active weights frozen, then grow."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.networks import zeros
from prunekit.sparsify import choose
from prunekit.sparsify.masks import factors
from prunekit.sparsify.schedule import SparsitySchedule
from prunekit.sparsify.sparsifier import Sparsifier, numbered, packed
from prunekit.support.errors import UsageError

State = list[dict[str, Any]]
"""An optimizer's state of each sparse weight."""


class IEE(Sparsifier):
    """Iterative exploitation and exploration: what grows was trained before it is chosen.

    While it explores, the model holds the inactive weights too, and :attr:`active` is a copy
    without them. Active weights, all other parameters, buffers (the running statistics of norms)
    and the optimizer's state are the same after an exploration as before it, bit by bit.
    """

    name = "iee"
    explores = True
    reads = tuple(field.name for field in fields(SparsitySchedule) if field.name != "steps")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._asleep: list[Tensor] = []
        """What inactive weights begin to explore from."""
        self._recent: list[Tensor] = []
        """What they were when last active, where that is asked for."""
        super().__init__(*arguments, **options)
        if self._lengths[2] == 0 and self.criterion.needs_gradients:
            raise UsageError(
                f"`explore` of 0 leaves {self.criterion.name} no gradients of inactive weights to "
                "score them by; use 1 or more, or criterion magnitude"
            )
        self._awake: list[Tensor] = []
        """Inactive weights that are back; empty unless exploring."""
        self._free: list[Tensor] = []
        """The same as factors: 1 for what the exploration trains."""
        self._values: list[Tensor] = []
        """The active weights, zero elsewhere."""
        self._wide_counts: list[int] = []
        self._buffers: dict[str, Tensor] = {}
        self._held: State = []
        """The optimizer's state of the active weights, put by while exploring."""
        self._slept: State = []
        """Its state of the inactive weights, from their last exploration, where that is kept."""
        self._explored: list[Tensor] = []

    def remember(self) -> None:
        """Weights that were never active have the values they were given as most recent ones."""
        if self._keeps_recent:
            self._recent = [weight.detach().clone() for weight in self._weights]
        if self.schedule.source == "mru":
            self._asleep = self._recent
        else:
            self._asleep = [torch.zeros_like(weight) for weight in self._weights]

    @property
    def _keeps_recent(self) -> bool:
        return "mru" in (self.schedule.source, self.schedule.grow)

    @property
    def active(self) -> nn.Module:
        """The network of the active weights: the model itself, or a copy while it explores."""
        if self._stage != "explore":
            return self.model
        network = copy.deepcopy(self.model)
        modules = dict(network.named_modules())
        with torch.no_grad():
            for name, on in self.masks.items():
                modules[name].get_parameter("weight").mul_(on)
            for name, buffer in network.named_buffers():
                if name in self._buffers:
                    buffer.copy_(self._buffers[name])
        return network

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over ``model``'s parameters."""
        super().begin(model, optimizer)
        # to the weights' device and type
        recent = [part.to(w) for part, w in zip(self._recent, self._weights, strict=False)]
        slept = [part.to(w) for part, w in zip(self._asleep, self._weights, strict=True)]
        self._recent = recent
        self._asleep = recent if self.schedule.source == "mru" else slept

    # --- stages -------------------------------------------------------------------------------

    def _next(self) -> None:
        """Leave this stage for the next that has any steps."""
        _, improve, explore = self._lengths
        if self._stage == "train":
            self._drop()
            if improve:
                self._enter("improve", improve)
                return
        if self._stage != "explore":
            self._wake()
            if explore:
                self._enter("explore", explore)
                return
        self._sleep()
        self._grow()

    @property
    def reads_gradients(self) -> bool:
        """At the step before an exploration, where that samples by gradient."""
        last = "improve" if self._lengths[1] else "train"
        sampled = self.schedule.sample == "gradient" and self.schedule.reactivate < 1
        return sampled and self._stage == last

    def _drop(self) -> None:
        kept = self._keeps_recent
        values = [weight.detach().clone() for weight in self._weights] if kept else []
        super()._drop()
        for held, value, before, left in zip(
            self._recent, values, self._before, self._left_over, strict=kept
        ):
            held.copy_(torch.where(before & ~left, value, held))

    def _wake(self) -> None:
        """Stage 4 begins: bring inactive weights back, with everything else frozen."""
        self._values = [weight.detach().clone() for weight in self._weights]
        self._open(self._sampled())
        if self.schedule.source != "zero":
            _take(self._weights, self._asleep, self._awake)
        self._gradients = []
        if self.schedule.freeze:
            self._buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
            self._held = self._exchange_state(self._slept)
        else:
            self._take_momentum(self._awake)

    def _open(self, awake: list[Tensor]) -> None:
        self._awake = awake
        counted = zip(self._masks.counts(), awake, strict=True)
        self._wide_counts = [n + int(torch.count_nonzero(back)) for n, back in counted]
        trained = awake
        if not self.schedule.freeze:
            trained = [on | back for on, back in zip(self._left_over, awake, strict=True)]
        self._free = factors(trained, self._weights)

    def _sampled(self) -> list[Tensor]:
        """The inactive weights that come back: no fewer than are to grow, in each N:M block too."""
        asleep = [~on for on in self._left_over]
        if self.schedule.reactivate == 1:
            return asleep
        scores = self._gradients or self._scorer.draws(1 + self._cycle)
        found = []
        for part, rest, before in zip(scores, asleep, self._before, strict=True):
            growing = int((before & rest).sum())
            wanted = max(growing, round(self.schedule.reactivate * int(rest.sum())))
            open_ = part.masked_fill(~rest, choose.ABSENT)
            awake = choose.top(open_, wanted)
            if self.pattern.structured:
                short = zeros.blocks_with(before & rest, self.pattern)
                awake |= zeros.top_of_blocks(open_, self.pattern) & short
            found.append(awake & rest)
        return found

    def _sleep(self) -> None:
        """Stage 4 ends: score what explored, put it by, and bring everything else back."""
        scores = self._scorer.result() if self._lengths[2] else self._scorer.now()
        self._explored = scores
        if self.schedule.reactivate < 1:  # else all that is inactive explored
            self._explored = [
                part.masked_fill(~awake, choose.ABSENT)
                for part, awake in zip(scores, self._awake, strict=True)
            ]
        if self.schedule.source == "explored":
            _take(self._asleep, self._weights, self._awake)
        if self.schedule.grow == "zero":
            self._masks.zero_()
        elif self.schedule.grow == "mru":
            _take(self._weights, self._recent, self._awake)
        self._put_momentum_by()
        if self.schedule.freeze:
            live = dict(self.model.named_buffers())
            for name, buffer in self._buffers.items():
                live[name].copy_(buffer)
        self._held, self._buffers, self._values, self._free = [], {}, [], []
        self._awake = []

    def growth_scores(self) -> list[Tensor]:
        """What they scored while they explored."""
        found, self._explored = self._explored, []
        return found

    # --- freezing -----------------------------------------------------------------------------

    def mask_gradients_(self) -> None:
        """While exploring, leave gradient to the inactive weights alone."""
        if self._stage != "explore":
            super().mask_gradients_()
            return
        pairs = [
            (w.grad, f)
            for w, f in zip(self._weights, self._free, strict=True)
            if w.grad is not None
        ]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [f for _, f in pairs])
        if self.schedule.freeze:  # without a gradient an optimizer leaves a parameter alone
            sparse = {id(weight) for weight in self._weights}
            for parameter in self.model.parameters():
                if id(parameter) not in sparse:
                    parameter.grad = None

    def hold_(self, optimizer: Optimizer) -> None:
        """While exploring, undo what weight decay did to the active weights, bit by bit."""
        if self._stage != "explore":
            super().hold_(optimizer)
            return
        # x * 0 + value on what is frozen or asleep, x * 1 + 0 on the others
        torch._foreach_mul_(self._weights, self._free)
        if self.schedule.freeze:
            torch._foreach_add_(self._weights, self._values)

    def count_step(self) -> None:
        """An exploring step runs all weights that are back."""
        if self._stage == "explore":
            self._work.add(self._wide_counts)
        else:
            super().count_step()

    def _exchange_state(self, new: State) -> State:
        """Give the optimizer ``new`` for the sparse weights; what it had comes back."""
        optimizer = self._optimizer
        if optimizer is None:
            return []
        old = [optimizer.state.pop(weight, {}) for weight in self._weights]
        for weight, entry in zip(self._weights, new, strict=bool(new)):
            if entry:
                optimizer.state[weight] = dict(entry)
        return old

    def _put_momentum_by(self) -> None:
        """Stage 4 ends: the optimizer's state is again what is active's, and what grows keeps."""
        explored: State = []
        if self.schedule.freeze:
            explored = self._exchange_state(self._held)
        elif self._optimizer is not None:
            explored = [dict(self._optimizer.state.get(w, {})) for w in self._weights]
        if self.schedule.momentum == "kept":
            self._slept = [
                {key: _where(~on, value) for key, value in entry.items()}
                for on, entry in zip(self._left_over, explored, strict=bool(explored))
            ]
            self._take_momentum(self._awake)
        elif not self.schedule.freeze and self._optimizer is not None:
            self._masks.clear_state_(self._optimizer)

    def _take_momentum(self, awake: list[Tensor]) -> None:
        """Give the optimizer what ``awake`` had as momentum when it last explored."""
        if self._optimizer is None:
            return
        for weight, entry, on in zip(self._weights, self._slept, awake, strict=bool(self._slept)):
            live = self._optimizer.state.get(weight, {})
            for key, value in entry.items():
                held = live.get(key)
                if isinstance(held, Tensor) and held.shape == weight.shape:
                    held.copy_(torch.where(on, value, held))

    # --- going on after a restart ---------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs besides the model's and the optimizer's own state."""
        tensors, facts = super().state()
        tensors |= {f"asleep.{i}": part for i, part in enumerate(self._asleep)}
        if self._recent is not self._asleep:
            tensors |= {f"recent.{i}": part for i, part in enumerate(self._recent)}
        tensors |= {f"awake.{i}": part for i, part in enumerate(self._awake)}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self._buffers.items()}
        facts["states"] = {}
        for kind, state in (("held", self._held), ("slept", self._slept)):
            facts["states"][kind] = len(state)
            for i, entry in enumerate(state):
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        tensors[f"{kind}.{i}.{key}"] = value
                    elif value is not None:
                        facts["states"][f"{kind}.{i}.{key}"] = value
        return packed(tensors), facts

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; the model has its values already."""
        super().load_state(tensors, facts)
        tensors = self.here(tensors)
        self._asleep, self._recent = numbered(tensors, "asleep"), numbered(tensors, "recent")
        if self.schedule.source == "mru":
            self._recent = self._asleep
        self._buffers = {
            name.removeprefix("buffer."): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith("buffer.")
        }
        self._held, self._slept = (_states(tensors, facts, kind) for kind in ("held", "slept"))
        awake = [part.bool() for part in numbered(tensors, "awake")]
        if awake:
            self._values = [
                weight.detach() * on
                for weight, on in zip(self._weights, self._left_over, strict=True)
            ]
            self._open(awake)


def _take(to: list[Tensor], new: list[Tensor], masks: list[Tensor]) -> None:
    """Where a mask is set, what ``new`` holds; a weight of 0 or 1 gives one side bit by bit."""
    torch._foreach_lerp_(to, new, factors(masks, to))


def _where(mask: Tensor, value: Any) -> Any:
    """A copy of what an optimizer remembers, zero outside of ``mask`` where it is per weight."""
    if isinstance(value, Tensor):
        return value * mask if value.shape == mask.shape else value.clone()
    return value


def _states(tensors: dict[str, Tensor], facts: dict[str, Any], kind: str) -> State:
    found: State = [{} for _ in range(facts["states"][kind])]
    values = {**tensors, **facts["states"]}
    for name, value in values.items():
        part, _, rest = name.partition(".")
        if part == kind and rest:
            index, _, key = rest.partition(".")
            step = isinstance(value, Tensor) and value.ndim == 0
            # optimizers count steps on the CPU
            held = value.cpu() if step else value
            found[int(index)][key] = held.clone() if isinstance(held, Tensor) else held
    return found
