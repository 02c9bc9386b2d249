"""A slim network made to compute what the dense one computed, without a label and without training.

Biases and weights of the layers that read removed channels are changed, and statistics of norms.
Names and shapes of the state stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunekit.core.plan import ChannelPlan, check_same
from prunekit.networks.products import Survey
from prunekit.networks.running import evaluating
from prunekit.networks.slimming import copied, kept, model_fingerprint
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.pruning.repair import inputs as images
from prunekit.pruning.repair.by_norms import shift_by_norms_
from prunekit.pruning.repair.layers import HELD_OUT, RepairedLayer, record, solve_
from prunekit.pruning.repair.shifts import Shifts
from prunekit.support.errors import UsageError
from prunekit.tasks.base import run, tensors_in
from prunekit.train.norms import renew_norms

RepairMethod = Literal["none", "norms", "bias", "least-squares", "auto"]
METHODS: tuple[str, ...] = get_args(RepairMethod)
_ONE_BATCH = 128
"""Images that outputs are compared in at once."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired network and what was done; ``method`` is what was chosen, ``auto``'s choice too.

    Distances are of outputs from the dense network's, as a share of their deviation, on images
    that nothing was fitted to; None without images.
    """

    network: nn.Module
    method: str
    images: int
    before: float | None
    after: float | None
    seconds: float
    layers: dict[str, RepairedLayer] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Layers that read removed channels and stay as they are, and why."""
    tried: dict[str, float] = field(default_factory=dict)
    """The distance after every method that ``auto`` tried."""

    @property
    def short_of_images(self) -> tuple[str, int] | None:
        """The layer that had least positions for its unknowns, and how many images it needs.

        None where every layer had as many positions as unknowns.
        """
        short = {n: r for n, r in self.layers.items() if r.rows < r.needed}
        if not short:
            return None
        name = max(short, key=lambda n: short[n].needed / max(1, short[n].rows))
        layer = short[name]
        return name, -(-self.images * layer.needed // max(1, layer.rows))


def repair(
    dense: nn.Module,
    slim: nn.Module,
    plan: ChannelPlan,
    batches: Iterable[Any] | None = None,
    *,
    method: RepairMethod = "auto",
    example: Any = None,
    memory: int = images.MEMORY,
) -> Repaired:
    """A copy of ``slim``, which ``plan`` left of ``dense``, that is nearer to what that computes.

    ``batches`` are inputs as the network takes them, without labels: a tensor each, a tuple or a
    dictionary; at most 1024 images are used, and fewer where activations would take more than
    ``memory`` bytes. Every fifth is held out. Methods:

    - ``bias``: what removed channels gave on average goes into the bias of what reads them, or
      into the norm behind it. Without batches averages are those of the norms' own parameters,
      through the activation behind them; ``example`` (an input of any values) gives the shapes.
      Exact for constant channels.
    - ``norms``: running means and variances over the images.
    - ``least-squares``: every layer behind a removed channel is solved anew, in the order that
      they run, from what it reads in the slim network to what it gave in the dense one; the ridge
      is the one that is best on the images held out. Exact where removed channels are linear
      combinations of those kept.
    - ``auto``: whichever of these leaves the outputs nearest to the dense network's on the images
      held out; ``bias`` without batches.

    Raises UsageError, DataError or ModelError in one line.

    Source: layers reconstructed as in arXiv 1707.06168, here asymmetrically, with bias and ridge.

    Examples:
        >>> from prunekit import ChannelPlan, slim, trace
        >>> dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> plan = ChannelPlan.from_widths(trace(dense, torch.zeros(1, 3, 8, 8)), {"0": 5})
        >>> fixed = repair(dense, slim(dense, plan), plan, [torch.randn(64, 3, 8, 8)])
        >>> fixed.after < fixed.before
        True
    """
    if method not in METHODS:
        raise UsageError(f"`method` must be one of {', '.join(METHODS)}, not {method!r}")
    check_same(plan.fingerprint, model_fingerprint(dense), type(dense).__name__)
    started = time.perf_counter()
    if batches is None:
        return _without_images(dense, slim, plan, method, example, started)
    inputs, survey = images.gathered(batches, dense, memory)
    work = _Work(dense, slim, plan, inputs, survey)
    before = work.distance(slim)
    if method != "auto":
        return work.finished(work.repaired(method), before, started)
    attempts = [work.repaired(name) for name in METHODS if name != "auto"]
    attempts += [work.renewed(last) for last in attempts if last.method == "least-squares"]
    best = min(attempts, key=lambda attempt: attempt.distance)
    tried = {attempt.method: attempt.distance for attempt in attempts}
    return work.finished(best, before, started, tried)


def _without_images(
    dense: nn.Module,
    slim: nn.Module,
    plan: ChannelPlan,
    method: str,
    example: Any,
    started: float,
) -> Repaired:
    """Biases by the norms' own parameters, or nothing."""
    if method in ("norms", "least-squares"):
        raise UsageError(f"repair by {method} needs images; give `batches`, or use bias")
    network = copied(slim)
    layers: dict[str, RepairedLayer] = {}
    left: dict[str, str] = {}
    if method != "none":
        if example is None:
            raise UsageError("repair without `batches` needs `example`, an input of any values")
        layers, left = shift_by_norms_(network, dense, plan, example)
    chosen = "none" if method == "none" else "bias"
    seconds = time.perf_counter() - started
    return Repaired(network, chosen, 0, None, None, seconds, layers, left)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """One way of repairing, and where it led."""

    method: str
    network: nn.Module
    distance: float
    layers: dict[str, RepairedLayer] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Work:
    """What all attempts share."""

    dense: nn.Module
    slim: nn.Module
    plan: ChannelPlan
    inputs: Any
    survey: Survey

    def repaired(self, method: str) -> _Attempt:
        """A copy of the slim network, repaired in one way."""
        network = copied(self.slim)
        layers: dict[str, RepairedLayer] = {}
        left: dict[str, str] = {}
        if method == "norms":
            renew_norms(network, self._fitted())
        elif method != "none":
            count = images.count_of(self.inputs)
            wanted = record(self.dense, self.plan, self.survey, self.inputs, count)
            shifts = Shifts(network, self._survey(network))
            weights = method == "least-squares"
            layers, left = solve_(network, wanted, shifts, self.inputs, weights=weights)
            left |= {name: why for name, why in self._unmet(layers).items() if name not in left}
        return _Attempt(method, network, self.distance(network), layers, left)

    def renewed(self, attempt: _Attempt) -> _Attempt:
        """The same with its norms' statistics taken anew."""
        network = copied(attempt.network)
        renew_norms(network, self._fitted())
        method, distance = f"{attempt.method}+norms", self.distance(network)
        return _Attempt(method, network, distance, attempt.layers, attempt.left)

    @torch.no_grad()
    def distance(self, network: nn.Module) -> float:
        """Of outputs from the dense network's on images held out, as a share of their deviation."""
        out = images.held_out(self.inputs, HELD_OUT)
        with evaluating(network), evaluating(self.dense):
            pairs = zip(
                tensors_in(run(network, out)), tensors_in(run(self.dense, out)), strict=True
            )
            shares = [_share(mine.double(), right.double()) for mine, right in pairs]
        return float(torch.stack(shares).mean()) if shares else 0.0

    def finished(
        self,
        attempt: _Attempt,
        before: float,
        started: float,
        tried: dict[str, float] | None = None,
    ) -> Repaired:
        """What is told of it."""
        return Repaired(
            attempt.network,
            attempt.method,
            images.count_of(self.inputs),
            before,
            attempt.distance,
            time.perf_counter() - started,
            attempt.layers,
            attempt.left,
            tried or {},
        )

    def _fitted(self) -> list[Any]:
        fitted = images.fitted_to(self.inputs, HELD_OUT)
        count = images.count_of(fitted)
        return [
            images.first_of(images.skipped(fitted, start), _ONE_BATCH)
            for start in range(0, count, _ONE_BATCH)
        ]

    def _survey(self, network: nn.Module) -> Survey:
        return images.survey_of(network, images.first_of(self.inputs))

    def _unmet(self, layers: dict[str, RepairedLayer]) -> dict[str, str]:
        """Layers that lost inputs and were not met, or not alone."""
        parts, modules = kept(self.dense, self.plan), dict(self.dense.named_modules())
        unmet = {}
        for name, cut in self.plan.cuts.items():
            if not cut.in_ or name in layers or f"{name}.weight" not in parts:
                continue
            calls = self.survey.calls.get(name, 0)
            module = modules[name]
            if calls != 1 and isinstance(module, LAYER_TYPES):
                times = f"it is called {calls} times" if calls else "it is not called as a layer"
                unmet[name] = f"{times} ({type(module).__name__})"
        return unmet


def _share(mine: Tensor, right: Tensor) -> Tensor:
    spread = right - right.mean(0) if len(right) > 1 else right
    distance: Tensor = (mine - right).norm() / spread.norm().clamp(min=1e-30)
    return distance
