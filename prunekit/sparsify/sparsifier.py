"""Sparse training: one loop for all methods, which differ in what drops and what grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from prunekit.core.density import Distribution, Pattern, counts, parse_sparsity
from prunekit.core.sparsity import SparseLayer, SparsityPlan
from prunekit.criteria import Magnitude, WeightCriterion
from prunekit.networks.running import unwrapped
from prunekit.networks.weight_layers import FIRST, find_layers
from prunekit.sparsify import choose
from prunekit.sparsify.history import Record, share
from prunekit.sparsify.masks import Masks
from prunekit.sparsify.schedule import SparsitySchedule
from prunekit.sparsify.scoring import Scorer, finite
from prunekit.sparsify.work import Work
from prunekit.support.errors import TrainingError, UsageError
from prunekit.support.processes import average_
from prunekit.support.registry import criteria
from prunekit.train.method_state import check_settings
from prunekit.train.step import take_step

PATIENCE = 16
"""Further steps that an exchange waits for finite gradients: mixed precision overflows at times."""


class Sparsifier:
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

    name: ClassVar[str] = ""
    exchanges: ClassVar[bool] = True
    """Whether weights change hands."""
    explores: ClassVar[bool] = False
    """Whether inactive weights are trained before some of them grow."""
    by_gradient: ClassVar[bool] = False
    """Whether growth reads the dense gradient of the exchange's step."""
    reads: ClassVar[tuple[str, ...]] = ("every", "fraction", "decay", "until", "stop_iou", "seed")
    """The fields of the schedule that mean something to the method."""

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
        if schedule is None and not self.exchanges:
            schedule = SparsitySchedule(1)
        if not isinstance(schedule, SparsitySchedule):
            raise UsageError(
                f"{self.name} needs a schedule: "
                "pk.sparsify.SparsitySchedule(steps=epochs * len(loader))"
            )
        self.model, self.schedule = unwrapped(model), schedule
        self.pattern = pattern if isinstance(pattern, Pattern) else Pattern.parse(str(pattern))
        made = criteria.make(criterion) if isinstance(criterion, str) else criterion
        self.criterion: WeightCriterion = Magnitude() if made is None else made
        self.distribution, self.ranking, self.start = distribution, ranking, start
        _check(self)
        self.layers = find_layers(self.model, dense, example)
        sparse = [layer for layer in self.layers if not layer.dense]
        self._names = [layer.name for layer in sparse]
        self._weights: list[Tensor] = [layer.weight for layer in sparse]
        if sparsity is None:
            if not self.pattern.structured:
                raise UsageError("give `sparsity`, such as 0.9, or an N:M `pattern`")
            sparsity = self.pattern.sparsity
        sparsity = parse_sparsity(str(sparsity))
        shapes = [layer.shape for layer in sparse]
        self.target = list(counts(shapes, sparsity, distribution, self.pattern).values())
        """Weights that each sparse layer keeps, as the distribution says."""
        self._work = Work(self.model, self._names, self._weights, example)
        self._scorer = Scorer(self.criterion, self._names, self._weights, schedule.seed)
        self._omega = 0.0
        """The share of the active weights that the last drop took."""
        self._optimizer: Optimizer | None = None
        self._record = Record()
        self._gradients: list[Tensor] = []
        """Of all weights, at the step that an exchange reads them."""
        self._lengths = schedule.lengths(exploring=self.explores)
        if self.exchanges and sum(self._lengths) > schedule.last_step:
            raise UsageError(
                f"one cycle of {self.name} takes {sum(self._lengths)} steps, and exchanges end "
                f"after {schedule.last_step} of {schedule.steps}; train longer or shorten it"
            )
        self._done = self._cycle = self._waited = 0
        self._stage = "train" if self.exchanges else "final"
        self._left = self._lengths[0]
        with torch.no_grad():
            self.remember()
            self._masks = Masks([layer.weight for layer in sparse], self._first())
            self._masks.zero_()
        self._before, self._left_over = list(self._masks.active), list(self._masks.active)

    # --- what a user of the class sees --------------------------------------------------------

    @property
    def stage(self) -> str:
        """``train``, ``improve`` and ``explore`` in turn, then ``final``."""
        return self._stage

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which weights of every sparse layer are active, as booleans, by the layer's name."""
        return dict(zip(self._names, self._masks.active, strict=True))

    @property
    def plan(self) -> SparsityPlan:
        """The structure as it is now."""
        self._check_zeros()
        kept = dict(zip(self._names, self._masks.counts(), strict=True))
        return SparsityPlan(
            layers=tuple(
                SparseLayer(
                    layer.name,
                    layer.shape.shape,
                    kept.get(layer.name, layer.shape.size),
                    layer.dense,
                )
                for layer in self.layers
            ),
            pattern=str(self.pattern),
            distribution=str(self.pattern) if self.pattern.structured else self.distribution,
            method=self.name,
            criterion=self.criterion.name,
        )

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
    def history(self) -> list[dict[str, Any]]:
        """One row per exchange so far."""
        return self._record.rows

    @property
    def active(self) -> nn.Module:
        """The network of the active weights: the model itself, unless it is exploring."""
        return self.model

    def survival(self) -> float | None:
        """The share of all weights ever grown that are active now; None before any."""
        return share(self._record.ever, self._masks.active)

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
        if optimizer is not self._optimizer:
            raise UsageError(
                f"{self.name} was begun with another optimizer; give it the same at each step"
            )
        take_step(self, self.model, optimizer, self._done, clip_norm, scaler)
        optimizer.zero_grad(set_to_none=True)

    # --- the training loop's calls ------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Before the first step: ``optimizer`` is over ``model``'s parameters."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if unwrapped(model) is not self.model:
            raise UsageError(f"{self.name} was made for another model; give it the same one")
        if missing := [
            n for n, w in zip(self._names, self._weights, strict=True) if id(w) not in held
        ]:
            raise UsageError(
                f"the optimizer lacks the weight of {missing[0]}; "
                f"make it from the parameters of the model that {self.name} was given"
            )
        self._optimizer = optimizer
        self._masks.to_()
        for part in (self._before, self._left_over):
            part[:] = [on.to(w.device) for on, w in zip(part, self._weights, strict=True)]
        self._check_zeros()
        if not self._done:  # it may have trained the dense network
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
        if self.criterion.needs_gradients and self._stage in ("train", "explore"):
            self._scorer.add()
        if self._left == 1 and self.reads_gradients:
            self._gradients = [_gradient(weight).abs() for weight in self._weights]
            if not finite(self._gradients):
                self._gradients = []
                self._wait()
        self.mask_gradients_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Keep inactive weights at zero, and exchange when it is due."""
        del model, step
        self.hold_(optimizer)
        self.count_step()
        self._done += 1
        self._left -= 1
        if self._left == 0 and self._stage != "final":
            if self._scorer.waits and self._stage != "improve":
                self._wait()
                return
            self._waited = 0
            self._next()

    def rows(self) -> list[dict[str, Any]]:
        """One record per exchange since the last call, for the log."""
        return self._record.new()

    # --- what methods differ in -----------------------------------------------------------------

    def remember(self) -> None:
        """Take what is needed of the weights as they are before any is masked."""

    def first_counts(self) -> list[int]:
        """Active weights of each layer at the start."""
        return self.target

    def counts_after_drop(self) -> list[int]:
        """Active weights of each layer once those that go have gone."""
        part = self.schedule.fraction_at(self._done)
        active = self._masks.counts()
        sizes = [weight.numel() for weight in self._weights]
        # no more than can grow instead, and one stays
        return [
            n - min(round(part * n), n - 1, size - n) for n, size in zip(active, sizes, strict=True)
        ]

    def drop_scores(self) -> list[Tensor]:
        """Scores of the stage that ends, by which active weights stay."""
        return self._scorer.result()

    def growth_scores(self) -> list[Tensor] | None:
        """Scores by which inactive weights grow, or None where nothing grows."""
        return None

    @property
    def reads_gradients(self) -> bool:
        """Whether the last step of this stage hands out the dense gradient."""
        return self.by_gradient and self._stage == "train"

    def mask_gradients_(self) -> None:
        """Leave gradient to what this stage trains."""
        self._masks.clear_gradients_()

    def hold_(self, optimizer: Optimizer) -> None:
        """Put back what this stage does not train."""
        self._masks.after_step_(optimizer)

    def count_step(self) -> None:
        """Add the cost of the step just made."""
        self._work.add(self._masks.counts(), dense_gradient=bool(self._gradients))

    def _next(self) -> None:
        """Drop, then grow at once."""
        self._drop()
        self._grow()

    # --- exchanging -----------------------------------------------------------------------------

    def _first(self) -> list[Tensor]:
        counted = self.first_counts()
        if all(n == w.numel() for n, w in zip(counted, self._weights, strict=True)):
            return [torch.ones_like(weight, dtype=torch.bool) for weight in self._weights]
        scores, together = self._scorer.first(self.start), self.ranking == "global"
        if self.start == "scores" and together and not self.pattern.structured:
            every = [torch.ones_like(part, dtype=torch.bool) for part in scores]
            return choose.stay(scores, every, counted, together=True)
        return choose.start(scores, counted, self.pattern)

    def _drop(self) -> None:
        """The lowest-scored active weights leave, with their values and momentum."""
        scores = self.drop_scores()
        self._before = list(self._masks.active)
        keep = self.counts_after_drop()
        self._omega = 1 - sum(keep) / sum(self._masks.counts())
        self._left_over = choose.stay(scores, self._before, keep, together=self.ranking == "global")
        self._set(self._left_over)

    def _grow(self) -> None:
        """The best of the others join, up to the counts from before."""
        scores = self.growth_scores()
        after = self._left_over
        if scores is not None:
            average_(scores)
            after = choose.grow(
                scores,
                self._left_over,
                [int(torch.count_nonzero(part)) for part in self._before],
                self.pattern,
                together=self.ranking == "global",
            )
        self._set(after)
        self._gradients = []
        facts = {
            "step": self._done,
            "cycle": self._cycle,
            "omega": self._omega,
            "densities": {
                name: n / weight.numel()
                for name, n, weight in zip(
                    self._names, self._masks.counts(), self._weights, strict=True
                )
            },
        }
        if self._work.whole:
            facts["relative_flops"] = self._work.done / self.schedule.steps
        iou = self._record.note(self._before, self._left_over, after, facts)
        self._cycle += 1
        if self._is_last(iou):
            self._stage, self._left = "final", 0
        else:
            self._enter("train", self._lengths[0])

    def _is_last(self, iou: float) -> bool:
        stop = self.schedule.last_overlap(exploring=self.explores)
        if stop < 1 and iou >= stop:
            return True
        return self._done + sum(self._lengths) > self.schedule.last_step

    def _enter(self, stage: str, steps: int) -> None:
        self._stage, self._left = stage, steps
        self._scorer.reset()

    def _set(self, active: list[Tensor]) -> None:
        """Make ``active`` the structure: all other weights and their momentum become zero."""
        self._masks.set_(active)
        self._masks.zero_()
        if self._optimizer is not None:
            self._masks.clear_state_(self._optimizer)

    def _wait(self) -> None:
        """One step more, for gradients that are finite."""
        self._waited += 1
        if self._waited > PATIENCE:
            raise TrainingError(
                f"no finite gradients in {PATIENCE} steps before step {self._done}; "
                "lower the learning rate or set `clip_norm`"
            )
        self._left += 1

    @torch.no_grad()
    def _check_zeros(self) -> None:
        """Refuse weights that somebody else has changed since."""
        if self._stage == "explore":
            return
        for name, weight, on in zip(self._names, self._weights, self._masks.active, strict=True):
            if torch.count_nonzero(weight) > torch.count_nonzero(weight[on.to(weight.device)]):
                raise UsageError(
                    f"inactive weights of {name} are no longer zero: they were loaded or set after "
                    f"{type(self).__name__} was made; load them before, or call `load_state` after"
                )

    # --- going on after a restart ---------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What a run and the one that goes on from it must have in common."""
        own = {
            "method": self.name,
            "pattern": str(self.pattern),
            "criterion": self.criterion.name,
            "ranking": self.ranking,
            "target": dict(zip(self._names, self.target, strict=True)),
        }
        return {**asdict(self.schedule), **own}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs besides the model's and the optimizer's own state."""
        tensors, record = self._record.state()
        tensors |= {f"mask.{i}": part for i, part in enumerate(self._masks.active)}
        # copies: the three are the same tensors at times, which safetensors refuses
        tensors |= {f"before.{i}": part.clone() for i, part in enumerate(self._before)}
        tensors |= {f"left.{i}": part.clone() for i, part in enumerate(self._left_over)}
        tensors |= {f"sum.{i}": part for i, part in enumerate(self._scorer.sums)}
        tensors |= {f"gradient.{i}": part for i, part in enumerate(self._gradients)}
        facts = {
            "settings": self._settings(),
            "stage": self._stage,
            "left": self._left,
            "done": self._done,
            "cycle": self._cycle,
            "waited": self._waited,
            "omega": self._omega,
            "work": self._work.done,
            "weights": self._norms(),
            "scored": self._scorer.added,
            "record": record,
        }
        return packed(tensors), facts

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where :meth:`state` left off; the model has its values already.

        They are loaded after this object was made, which masks the model.
        """
        check_settings(f"{self.name} training", facts["settings"], self._settings())
        tensors = self.here(tensors)
        for name, now, was in zip(self._names, self._norms(), facts["weights"], strict=True):
            if not math.isclose(now, was, rel_tol=1e-4):
                raise UsageError(
                    f"the weights of {name} are not those that the state was saved with; first "
                    f"make {type(self).__name__}, then load the model's state dict, then this state"
                )
        self._stage, self._left = str(facts["stage"]), int(facts["left"])
        self._done, self._cycle = int(facts["done"]), int(facts["cycle"])
        self._waited, self._scorer.added = int(facts["waited"]), int(facts["scored"])
        self._work.done, self._omega = float(facts["work"]), float(facts["omega"])
        self._record.load_state(tensors, facts["record"])
        masks, before, left, self._scorer.sums, self._gradients = (
            numbered(tensors, kind) for kind in ("mask", "before", "left", "sum", "gradient")
        )
        self._masks.to_()
        self._masks.set_([part.bool() for part in masks])
        self._before = [part.bool() for part in before]
        self._left_over = [part.bool() for part in left]

    def here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, wherever they were loaded to."""
        return {name: tensor.to(self._weights[0].device) for name, tensor in tensors.items()}

    def _norms(self) -> list[float]:
        """The norm of every sparse weight, by which the model of a state is known again."""
        return [float(weight.detach().double().norm()) for weight in self._weights]


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the order of their axes, as files want them whatever the memory format."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def numbered(tensors: dict[str, Tensor], kind: str) -> list[Tensor]:
    """``kind.0``, ``kind.1``, ... as a list of copies."""
    count = sum(name.startswith(f"{kind}.") for name in tensors)
    return [tensors[f"{kind}.{i}"].clone() for i in range(count)]


def _check(made: Sparsifier) -> None:
    for name, choices in (("ranking", ("layer", "global")), ("start", ("random", "scores"))):
        if (value := getattr(made, name)) not in choices:
            raise UsageError(f"`{name}` must be {' or '.join(choices)}, not {value!r}")
    if not made.name:
        raise UsageError("Sparsifier trains nothing by itself; use Static, SET, RigL, GMP or IEE")
    if isinstance(made.criterion, type):
        raise UsageError(
            f"`criterion` is the class {made.criterion.__name__}; give an instance of it, "
            f"{made.criterion.__name__}()"
        )
    if not isinstance(made.criterion, WeightCriterion):
        raise UsageError(
            f"criterion {getattr(made.criterion, 'name', made.criterion)!r} scores channels only; "
            "weights are scored by magnitude, taylor, taylor_weight or random"
        )
    if not made.exchanges and made.criterion.needs_gradients:
        raise UsageError(
            f"{made.name} chooses before any training, when {made.criterion.name} has no "
            "gradients; use magnitude or random"
        )


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach()
