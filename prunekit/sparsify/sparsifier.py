"""Sparse training: one loop for all methods, which differ in what drops and what grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.core.density import Distribution, Pattern
from prunekit.core.sparsity import SparsityPlan
from prunekit.criteria import WeightCriterion
from prunekit.networks.running import unwrapped
from prunekit.networks.weight_layers import FIRST
from prunekit.sparsify import choose
from prunekit.sparsify.history import ExchangeFacts, SparseRow, share
from prunekit.sparsify.layers import find_sparse
from prunekit.sparsify.masks import Masks
from prunekit.sparsify.method import Method
from prunekit.sparsify.schedule import SparsitySchedule, Stage
from prunekit.sparsify.scoring import SCORER_FORMS, Scorer, finite
from prunekit.sparsify.settings import (
    Settings,
    check,
    check_cycle,
    checked_schedule,
    made_criterion,
)
from prunekit.sparsify.state import STATE_FORMS, SparsifierState
from prunekit.sparsify.work import WORK_FORMS, Work
from prunekit.support.errors import TrainingError, UsageError
from prunekit.support.processes import average_
from prunekit.train.method_state import Numbered, Saved, check_settings, read, write
from prunekit.train.rule import Facts, Tensors
from prunekit.train.step import PATIENCE, check_optimizer, take_step


class Sparsifier(Method):
    """Trains a network with most weights at zero; the base of all methods, alone none.

    Masks act on the model itself, whose inactive weights are exactly zero, so that its plain
    ``state_dict`` is the result. In a loop of one's own::

        for batch in loader:
            loss_fn(model, batch).backward()
            sparse.step(optimizer)

    ``sparsity`` is the share of zeros (``0.9`` or ``"90%"``) among the weights of all layers that
    are made sparse: linear and convolutional ones but those that ``dense`` names (names, patterns
    like ``layer1.*``, ``first``). It may be left out with an N:M ``pattern``. With several
    processes gradients are averaged here: give every process the same model and its share of the
    batch. Load a model's weights before this is made, or the state of a training after it, with
    :meth:`load_state`. ``example``, an input, is needed for :attr:`work`; with it the ``first``
    layer is the one that runs first, and layers that compute with something worked out from their
    weight (standardised ones) are refused.

    ``start`` is ``random``, or ``scores`` for the weights that the criterion ranks highest, as for
    a trained network (by magnitude where the criterion needs gradients). With ``ranking`` =
    ``global`` the weights of all layers compete, at a start by scores too, and layers' densities
    drift; their total does not.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | str | None = None,
        schedule: SparsitySchedule | None = None,
        *,
        distribution: Distribution = "erk",
        pattern: Pattern | str = "unstructured",
        criterion: WeightCriterion | str | None = None,
        ranking: Literal["layer", "global"] = "layer",
        dense: str | Sequence[str] | None = (FIRST,),
        start: Literal["random", "scores"] = "random",
        example: Any = None,
    ) -> None:
        settings = Settings(
            schedule=checked_schedule(self.name, schedule, exchanges=self.exchanges),
            pattern=pattern if isinstance(pattern, Pattern) else Pattern.parse(str(pattern)),
            criterion=made_criterion(criterion),
            distribution=distribution,
            ranking=ranking,
            start=start,
        )
        check(settings, self.name, exchanges=self.exchanges)
        self.model, self.settings = unwrapped(model), settings
        self._sparse = find_sparse(self.model, sparsity, settings, dense, example)
        names, weights = self._sparse.names, self._sparse.weights
        self._work = Work(self.model, names, weights, example)
        self._scorer = Scorer(settings.criterion, names, weights, settings.schedule.seed)
        self._optimizer: Optimizer | None = None
        if self.exchanges:
            check_cycle(settings.schedule, self.name, exploring=self.explores)
        with torch.no_grad():
            self.remember()
            self._masks = Masks(weights, self._first())
            self._masks.zero_()
        active = self._masks.active
        stage: Stage = "train" if self.exchanges else "final"
        self._state = SparsifierState(stage, self._lengths[0], list(active), list(active))

    # --- what a user of the class sees --------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """``train``, ``improve`` and ``explore`` in turn, then ``final``."""
        return self._state.stage

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which weights of every sparse layer are active, as booleans, by the layer's name."""
        return dict(zip(self._sparse.names, self._masks.active, strict=True))

    @property
    def plan(self) -> SparsityPlan:
        """The structure as it is now."""
        self._check_zeros()
        return self._sparse.plan(self._masks.counts(), self.settings, self.name)

    @property
    def work(self) -> float:
        """Training so far in steps of the dense network, by the FLOPs of linear and conv layers.

        Forward and backward count three forwards, of the active weights only, as the literature
        counts; a step whose growth reads dense gradients, two sparse and a dense one.
        """
        if not self._work.whole:
            raise UsageError(f"the work of {self.name} needs an `example` input; give it")
        return self._work.done

    @property
    def history(self) -> list[SparseRow]:
        """One row per exchange so far."""
        return self._state.history.rows

    @property
    def active(self) -> nn.Module:
        """The network of the active weights: the model itself, unless it is exploring."""
        return self.model

    def survival(self) -> float | None:
        """The share of all weights ever grown that are active now; None before any."""
        return share(self._state.history.ever_grown, self._masks.active)

    def step(
        self, optimizer: Optimizer, clip_norm: float = 0.0, scaler: GradScaler | None = None
    ) -> None:
        """One optimizer step after a backward pass of the model.

        ``clip_norm`` above 0 limits the norm of the gradients of what is trained; clipped before,
        the gradients of weights that are masked would count. ``scaler`` is the one that scaled
        the loss, in mixed precision; it is unscaled, stepped and updated here.
        """
        if self._optimizer is None:
            self.begin(self.model, optimizer)
        check_optimizer(self.name, self._optimizer, optimizer)
        take_step(self, self.model, optimizer, self._state.done, clip_norm, scaler)
        optimizer.zero_grad(set_to_none=True)

    # --- the training loop's calls ------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over ``model``'s parameters."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if unwrapped(model) is not self.model:
            raise UsageError(f"{self.name} was made for another model; give it the same one")
        names, weights = self._sparse.names, self._sparse.weights
        if missing := [n for n, w in zip(names, weights, strict=True) if id(w) not in trained]:
            raise UsageError(
                f"the optimizer lacks the weight of {missing[0]}; "
                f"make it from the parameters of the model that {self.name} was given"
            )
        self._optimizer = optimizer
        self._masks.to_()
        for part in (self._state.before, self._state.left_over):
            part[:] = [on.to(w.device) for on, w in zip(part, weights, strict=True)]
        self._check_zeros()
        if not self._state.done:  # it may have trained the dense network
            self._masks.clear_state_(optimizer)

    def training_network(self, model: nn.Module) -> nn.Module:
        """The model itself, masked."""
        return model

    def inference_network(self, model: nn.Module) -> nn.Module:
        """The network of the active weights."""
        del model
        return self.active

    @torch.no_grad()
    def after_backward(self, model: nn.Module, step: int) -> None:
        """Add this batch's scores, read dense gradients when due, and clear the inactive ones'."""
        del model, step
        state = self._state
        if self.criterion.needs_gradients and state.stage in ("train", "explore"):
            self._scorer.add()
        if state.left == 1 and self.reads_gradients:
            state.gradients = [_gradient(weight).abs() for weight in self._sparse.weights]
            if not finite(state.gradients):
                state.gradients = []
                self._wait()
        self.mask_gradients_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Keep inactive weights at zero, and exchange when it is due."""
        del model, step
        state = self._state
        self.hold_(optimizer)
        self.count_step()
        state.done += 1
        state.left -= 1
        if state.left or state.stage == "final":
            return
        if self._scorer.waits and state.stage != "improve":
            self._wait()
            return
        state.waited = 0
        self._next()

    def rows(self) -> list[SparseRow]:
        """One record per exchange since the last call, for the log."""
        return self._state.history.new()

    # --- exchanging -----------------------------------------------------------------------------

    def _next(self) -> None:
        """Drop, then grow at once."""
        self._drop()
        self._grow()

    def _first(self) -> list[Tensor]:
        counted = self.first_counts()
        if counted == self._sparse.sizes:
            return [torch.ones_like(weight, dtype=torch.bool) for weight in self._sparse.weights]
        start, together = self.settings.start, self.settings.together
        scores = self._scorer.first(start)
        if start == "scores" and together and not self.pattern.structured:
            every = [torch.ones_like(part, dtype=torch.bool) for part in scores]
            return choose.stay(scores, every, counted, together=True)
        return choose.start(scores, counted, self.pattern)

    def _drop(self) -> None:
        """The lowest-scored active weights leave, with their values and momentum."""
        scores, state = self.drop_scores(), self._state
        state.before = list(self._masks.active)
        keep = self.counts_after_drop()
        state.omega = 1 - sum(keep) / sum(self._masks.counts())
        together = self.settings.together
        state.left_over = choose.stay(scores, state.before, keep, together=together)
        self._set(state.left_over)

    def _grow(self) -> None:
        """The best of the others join, up to the counts from before."""
        state, scores = self._state, self.growth_scores()
        after = state.left_over
        if scores is not None:
            average_(scores)
            after = choose.grow(
                scores,
                state.left_over,
                [int(torch.count_nonzero(part)) for part in state.before],
                self.pattern,
                together=self.settings.together,
            )
        self._set(after)
        state.gradients = []
        iou = state.history.record(state.before, state.left_over, after, self._facts())
        state.cycle += 1
        if self._is_last(iou):
            state.stage, state.left = "final", 0
        else:
            self._enter("train", self._lengths[0])

    def _facts(self) -> ExchangeFacts:
        kept = zip(self._sparse.names, self._masks.counts(), self._sparse.sizes, strict=True)
        facts: ExchangeFacts = {
            "step": self._state.done,
            "cycle": self._state.cycle,
            "omega": self._state.omega,
            "densities": {name: n / size for name, n, size in kept},
        }
        if self._work.whole:
            facts["relative_flops"] = self._work.done / self.schedule.steps
        return facts

    def _is_last(self, iou: float) -> bool:
        return self.schedule.ends(self._state.done, iou, exploring=self.explores)

    def _enter(self, stage: Stage, steps: int) -> None:
        self._state.stage, self._state.left = stage, steps
        self._scorer.reset()

    def _set(self, active: list[Tensor]) -> None:
        """Make ``active`` the structure: all other weights and their momentum become zero."""
        self._masks.set_(active)
        self._masks.zero_()
        if self._optimizer is not None:
            self._masks.clear_state_(self._optimizer)

    def _wait(self) -> None:
        """One step more, for gradients that are finite."""
        state = self._state
        state.waited += 1
        if state.waited > PATIENCE:
            raise TrainingError(
                f"no finite gradients in {PATIENCE} steps before step {state.done}; "
                "lower the learning rate or set `clip_norm`"
            )
        state.left += 1

    def _check_zeros(self) -> None:
        """Refuse weights that somebody else has changed since; those that explore are no zeros."""
        if self._state.stage != "explore":
            self._sparse.check_zeros(self._masks.active, type(self).__name__)

    # --- going on after a restart ---------------------------------------------------------------

    def _settings(self) -> Facts:
        """What a run and the one that goes on from it must have in common."""
        own = {
            "method": self.name,
            "pattern": str(self.pattern),
            "criterion": self.criterion.name,
            "ranking": self.settings.ranking,
            "target": dict(zip(self._sparse.names, self.target, strict=True)),
        }
        return {**asdict(self.schedule), **own}

    def state(self) -> Saved:
        """Everything a resumed run needs besides the model's and the optimizer's own state."""
        saved = Saved.empty()
        self._write(saved)
        return saved.contiguous()

    def _write(self, saved: Saved) -> None:
        saved.facts.update(settings=self._settings(), weights=self._sparse.norms())
        Numbered("mask").write(self._masks.active, saved)
        write(self._state, saved, STATE_FORMS)
        write(self._scorer, saved, SCORER_FORMS)
        write(self._work, saved, WORK_FORMS)

    @torch.no_grad()
    def load_state(self, tensors: Tensors, facts: Facts) -> None:
        """Take up where :meth:`state` left off; the model has its values already.

        They are loaded after this object was made, which masks the model.
        """
        check_settings(f"{self.name} training", facts["settings"], self._settings())
        self._sparse.check_norms(facts["weights"], type(self).__name__)
        self._read(Saved(self.here(tensors), facts))

    def _read(self, saved: Saved) -> None:
        read(self._state, saved, STATE_FORMS)
        read(self._scorer, saved, SCORER_FORMS)
        read(self._work, saved, WORK_FORMS)
        self._masks.to_()
        self._masks.set_(Numbered("mask").read(saved))

    def here(self, tensors: Tensors) -> Tensors:
        """On the model's device, wherever they were loaded to."""
        device = self._sparse.weights[0].device
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach()
