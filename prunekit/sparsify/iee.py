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
from prunekit.sparsify.sparsifier import Sparsifier
from prunekit.sparsify.state import ExplorationState, exploration_forms
from prunekit.support.errors import UsageError
from prunekit.train.method_state import Entry, Saved, read, write
from prunekit.train.step import scale_gradients_


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
        self._exploration = ExplorationState()
        super().__init__(*arguments, **options)
        if self._lengths[2] == 0 and self.criterion.needs_gradients:
            raise UsageError(
                f"`explore` of 0 leaves {self.criterion.name} no gradients of inactive weights to "
                "score them by; use 1 or more, or criterion magnitude"
            )

    def remember(self) -> None:
        """Weights that were never active have the values they were given as most recent ones."""
        own, weights = self._exploration, self._sparse.weights
        if self._keeps_recent:
            own.recent = [weight.detach().clone() for weight in weights]
        if self.schedule.source == "mru":
            own.asleep = own.recent
        else:
            own.asleep = [torch.zeros_like(weight) for weight in weights]

    @property
    def _keeps_recent(self) -> bool:
        return "mru" in (self.schedule.source, self.schedule.grow)

    @property
    def active(self) -> nn.Module:
        """The network of the active weights: the model itself, or a copy while it explores."""
        if self._state.stage != "explore":
            return self.model
        network = copy.deepcopy(self.model)
        modules = dict(network.named_modules())
        with torch.no_grad():
            for name, on in self.masks.items():
                modules[name].get_parameter("weight").mul_(on)
            for name, buffer in network.named_buffers():
                if name in self._exploration.buffers:
                    buffer.copy_(self._exploration.buffers[name])
        return network

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over ``model``'s parameters."""
        super().begin(model, optimizer)
        own, weights = self._exploration, self._sparse.weights
        # to the weights' device and type
        own.recent = [part.to(w) for part, w in zip(own.recent, weights, strict=False)]
        if self.schedule.source == "mru":
            own.asleep = own.recent
        else:
            own.asleep = [part.to(w) for part, w in zip(own.asleep, weights, strict=True)]

    # --- stages -------------------------------------------------------------------------------

    def _next(self) -> None:
        """Leave this stage for the next that has any steps."""
        _, improve, explore = self._lengths
        if self._state.stage == "train":
            self._drop()
            if improve:
                self._enter("improve", improve)
                return
        if self._state.stage != "explore":
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
        return sampled and self._state.stage == last

    def _drop(self) -> None:
        own, state, weights = self._exploration, self._state, self._sparse.weights
        kept = self._keeps_recent
        values = [weight.detach().clone() for weight in weights] if kept else []
        super()._drop()
        for recent, value, before, left in zip(
            own.recent, values, state.before, state.left_over, strict=kept
        ):
            recent.copy_(torch.where(before & ~left, value, recent))

    def _wake(self) -> None:
        """Stage 4 begins: bring inactive weights back, with everything else frozen."""
        own, weights = self._exploration, self._sparse.weights
        own.values = [weight.detach().clone() for weight in weights]
        self._open(self._sampled())
        if self.schedule.source != "zero":
            _take(weights, own.asleep, own.awake)
        self._state.gradients = []
        if self.schedule.freeze:
            own.buffers = {n: b.detach().clone() for n, b in self.model.named_buffers()}
            own.held = self._exchange_state(own.slept)
        else:
            self._take_momentum(own.awake)

    def _open(self, awake: list[Tensor]) -> None:
        own = self._exploration
        own.awake = awake
        counted = zip(self._masks.counts(), awake, strict=True)
        own.wide_counts = [n + int(torch.count_nonzero(back)) for n, back in counted]
        trained = awake
        if not self.schedule.freeze:
            trained = [on | back for on, back in zip(self._state.left_over, awake, strict=True)]
        own.free = factors(trained, self._sparse.weights)

    def _sampled(self) -> list[Tensor]:
        """The inactive weights that come back: no fewer than are to grow, in each N:M block too."""
        state = self._state
        asleep = [~on for on in state.left_over]
        if self.schedule.reactivate == 1:
            return asleep
        scores = state.gradients or self._scorer.draws(1 + state.cycle)
        sampled = []
        for part, rest, before in zip(scores, asleep, state.before, strict=True):
            growing = int((before & rest).sum())
            wanted = max(growing, round(self.schedule.reactivate * int(rest.sum())))
            open_ = part.masked_fill(~rest, choose.ABSENT)
            awake = choose.top(open_, wanted)
            if self.pattern.structured:
                short = zeros.blocks_with(before & rest, self.pattern)
                awake |= zeros.top_of_blocks(open_, self.pattern) & short
            sampled.append(awake & rest)
        return sampled

    def _sleep(self) -> None:
        """Stage 4 ends: score what explored, put it by, and bring everything else back."""
        own, weights = self._exploration, self._sparse.weights
        scores = self._scorer.result() if self._lengths[2] else self._scorer.now()
        own.explored = scores
        if self.schedule.reactivate < 1:  # else all that is inactive explored
            own.explored = [
                part.masked_fill(~awake, choose.ABSENT)
                for part, awake in zip(scores, own.awake, strict=True)
            ]
        if self.schedule.source == "explored":
            _take(own.asleep, weights, own.awake)
        if self.schedule.grow == "zero":
            self._masks.zero_()
        elif self.schedule.grow == "mru":
            _take(weights, own.recent, own.awake)
        self._put_momentum_by()
        if self.schedule.freeze:
            live = dict(self.model.named_buffers())
            for name, buffer in own.buffers.items():
                live[name].copy_(buffer)
        own.held, own.buffers = [], {}
        own.awake, own.free, own.values = [], [], []

    def growth_scores(self) -> list[Tensor]:
        """What they scored while they explored."""
        own = self._exploration
        scores, own.explored = own.explored, []
        return scores

    # --- freezing -----------------------------------------------------------------------------

    def mask_gradients_(self) -> None:
        """While exploring, leave gradient to the inactive weights alone."""
        if self._state.stage != "explore":
            super().mask_gradients_()
            return
        scale_gradients_(self._sparse.weights, self._exploration.free)
        if self.schedule.freeze:  # without a gradient an optimizer leaves a parameter alone
            sparse = {id(weight) for weight in self._sparse.weights}
            for parameter in self.model.parameters():
                if id(parameter) not in sparse:
                    parameter.grad = None

    def hold_(self, optimizer: Optimizer) -> None:
        """While exploring, undo what weight decay did to the active weights, bit by bit."""
        own, weights = self._exploration, self._sparse.weights
        if self._state.stage != "explore":
            super().hold_(optimizer)
            return
        # x * 0 + value on what is frozen or asleep, x * 1 + 0 on the others
        torch._foreach_mul_(weights, own.free)
        if self.schedule.freeze:
            torch._foreach_add_(weights, own.values)

    def count_step(self) -> None:
        """An exploring step runs all weights that are back."""
        if self._state.stage == "explore":
            self._work.add(self._exploration.wide_counts)
        else:
            super().count_step()

    def _exchange_state(self, new: list[Entry]) -> list[Entry]:
        """Give the optimizer ``new`` for the sparse weights; what it had comes back."""
        weights = self._sparse.weights
        optimizer = self._optimizer
        if optimizer is None:
            return []
        old = [optimizer.state.pop(weight, {}) for weight in weights]
        for weight, entry in zip(weights, new, strict=bool(new)):
            if entry:
                optimizer.state[weight] = dict(entry)
        return old

    def _put_momentum_by(self) -> None:
        """Stage 4 ends: the optimizer's state is again what is active's, and what grows keeps."""
        own = self._exploration
        explored: list[Entry] = []
        if self.schedule.freeze:
            explored = self._exchange_state(own.held)
        elif self._optimizer is not None:
            explored = [dict(self._optimizer.state.get(w, {})) for w in self._sparse.weights]
        if self.schedule.momentum == "kept":
            own.slept = [
                {key: _where(~on, value) for key, value in entry.items()}
                for on, entry in zip(self._state.left_over, explored, strict=bool(explored))
            ]
            self._take_momentum(own.awake)
        elif not self.schedule.freeze and self._optimizer is not None:
            self._masks.clear_state_(self._optimizer)

    def _take_momentum(self, awake: list[Tensor]) -> None:
        """Give the optimizer what ``awake`` had as momentum when it last explored."""
        own, weights = self._exploration, self._sparse.weights
        if self._optimizer is None:
            return
        for weight, entry, on in zip(
            weights,
            own.slept,
            awake,
            strict=bool(own.slept),
        ):
            live = self._optimizer.state.get(weight, {})
            for key, value in entry.items():
                now = live.get(key)
                if isinstance(now, Tensor) and now.shape == weight.shape:
                    now.copy_(torch.where(on, value, now))

    # --- going on after a restart ---------------------------------------------------------------

    def _write(self, saved: Saved) -> None:
        super()._write(saved)
        write(self._exploration, saved, exploration_forms(self.schedule.source))

    def _read(self, saved: Saved) -> None:
        super()._read(saved)
        own = self._exploration
        read(own, saved, exploration_forms(self.schedule.source))
        if self.schedule.source == "mru":
            own.recent = own.asleep
        if own.awake:
            own.values = [
                weight.detach() * on
                for weight, on in zip(self._sparse.weights, self._state.left_over, strict=True)
            ]
            self._open(own.awake)


def _take(to: list[Tensor], new: list[Tensor], masks: list[Tensor]) -> None:
    """Where a mask is set, what ``new`` holds; a weight of 0 or 1 gives one side bit by bit."""
    torch._foreach_lerp_(to, new, factors(masks, to))


def _where(mask: Tensor, value: Any) -> Any:
    """A copy of what an optimizer remembers, zero outside of ``mask`` where it is per weight."""
    if isinstance(value, Tensor):
        return value * mask if value.shape == mask.shape else value.clone()
    return value
