"""Proof on a randomised copy: what cannot be shown to slim exactly is frozen, with the reason."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.masks import mask_
from prunekit.plan import ChannelPlan
from prunekit.surgery import slim
from prunekit.tracing.atoms import tensors

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest relative difference between the masked and the slim network's outputs."""
SECONDS = 120.0
PLANS = 2
"""Plans that have to be exact."""
PLANS_OF_INDICES = 8
"""Whole numbers in the output, such as an argmax, often come out right by chance."""
SIDES: tuple[Literal["in", "out"], ...] = ("in", "out")


def prove(
    model: nn.Module, graph: ChannelGraph, example: Any, *, train_mode: bool = False
) -> ChannelGraph:
    """``graph`` with every group frozen whose removal could not be proved exact."""
    subject = _subject(model, example, train_mode)
    if _failure(subject, graph, None) is None:
        return graph
    deadline = time.monotonic() + SECONDS
    reasons: dict[str, str] = {}
    late = f"not proved within {SECONDS:.0f} s"
    for group in graph.groups:
        if not group.prunable:
            continue
        if time.monotonic() > deadline:
            reasons[group.id] = late
        elif reason := _failure(subject, graph, group.id):
            reasons[group.id] = reason
    frozen = _freeze(graph, reasons)
    if _failure(subject, frozen, None) is None:
        return frozen
    waiting = {group.id: late for group in frozen.groups if group.prunable}
    for group_id in list(waiting):  # each alone is exact, all together are not: one by one
        del waiting[group_id]
        found = late
        if time.monotonic() <= deadline:
            found = _failure(subject, _freeze(frozen, waiting), None) or ""
        if found:
            frozen = _freeze(frozen, {group_id: f"together with the groups before it: {found}"})
    return frozen


def _freeze(graph: ChannelGraph, reasons: dict[str, str]) -> ChannelGraph:
    groups = tuple(
        replace(group, prunable=False, reason=reasons[group.id]) if group.id in reasons else group
        for group in graph.groups
    )
    return replace(graph, groups=groups)


@dataclass(frozen=True)
class _Subject:
    """What the proof runs: a randomised copy of the model, and an input that shows something."""

    model: nn.Module
    example: Any
    tolerance: float
    trains: bool


def _subject(model: nn.Module, example: Any, train_mode: bool) -> _Subject:
    """In float64, or in float32 for a model that insists on it somewhere."""
    for dtype in TOLERANCE:

        def cast(value: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

        working, given = _randomised(model, dtype), _each(example, cast)
        shown = next((e for e in (_informative(given), given) if _runs(working, e)), None)
        if shown is not None:
            break
    given = given if shown is None else shown
    trains = train_mode and _runs(copy.deepcopy(working).train(), _batch_of_two(given))
    return _Subject(working, given, TOLERANCE[dtype], trains)


def _runs(model: nn.Module, example: Any) -> bool:
    """Whether the model takes the example (a detector does not, when training, without targets)."""
    try:
        with torch.no_grad():
            _outputs(model, example)
    except Exception:
        return False
    return True


def _failure(subject: _Subject, graph: ChannelGraph, only: str | None) -> str | None:
    """Why a plan (over all prunable groups, or one) is not exact, or None when all tried are."""
    count = PLANS
    for number in range(PLANS_OF_INDICES):
        if number >= count:
            break
        plan = _plan(graph, only, number)
        try:
            small = slim(subject.model, plan)
            if mismatch := _widths_differ(small, graph, plan):
                return mismatch
            masked = mask_(copy.deepcopy(subject.model), plan)
            with torch.no_grad():
                expected = _outputs(masked, subject.example)
                found = _outputs(small, subject.example)
                if subject.trains:
                    _outputs(small.train(), _batch_of_two(subject.example))
        except Exception as error:  # the model's own code may raise anything
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"the slim network fails: {cause}"
        if difference := _difference(expected, found, subject.tolerance):
            return difference
        if not all(t.is_floating_point() for t in expected):
            count = PLANS_OF_INDICES
    return None


def _plan(graph: ChannelGraph, only: str | None, number: int) -> ChannelPlan:
    """The random plan ``number``; several have ever other widths, so that luck does not pass.

    From plan to plan a group's width changes by one, up for one group and down for the next:
    halves of a ``chunk`` that were as wide as each other are not any more, nor is even still even.
    """
    groups = [g for g in graph.groups if g.prunable and g.size > 1]
    wanted = ChannelPlan.random(graph, keep=0.6, seed=7).widths
    rng = np.random.default_rng(number)
    keep = {}
    for i, group in enumerate(groups):
        step, most = (number % 2 if i % 2 == 0 else -(number % 2)), group.size
        if only is not None:
            step, most = -(number % 2), group.size - 1
        width = min(max(wanted[group.id] + step, 1), most)
        keep[group.id] = rng.permutation(group.size)[:width].tolist()
    return ChannelPlan.from_keep(graph, keep if only is None else {only: keep[only]})


def _difference(expected: list[Tensor], found: list[Tensor], tolerance: float) -> str | None:
    """How the slim network's outputs differ from the masked one's, or None."""
    if len(expected) != len(found):
        return f"the slim network has {len(found)} outputs, not {len(expected)}"
    for left, right in zip(expected, found, strict=True):
        if left.shape != right.shape:
            return f"the output's shape changes from {tuple(left.shape)} to {tuple(right.shape)}"
        if not left.numel():
            continue
        left, right = left.double(), right.double()
        scale = left.abs().max().clamp_min(1e-12)
        difference = float((left - right).abs().max() / scale)
        if not difference <= tolerance:
            return f"removing is not the same as zeroing (relative difference {difference:.1e})"
    return None


def _widths_differ(small: nn.Module, graph: ChannelGraph, plan: ChannelPlan) -> str | None:
    modules = dict(small.named_modules())
    for layer in graph.layers:
        module: Any = modules[layer.name]
        kind = "features" if isinstance(module, nn.Linear) else "channels"
        for side in SIDES:
            physical = getattr(module, f"{side}_{kind}")
            predicted = layer.width(side, plan.widths)
            if physical != predicted:
                return f"{layer.name} would have {physical} {side} channels, not {predicted}"
    return None


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    return tensors(model(**example) if isinstance(example, dict) else model(*example))


def _randomised(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A copy on the CPU whose norms and biases are not at their trivial initial values."""
    working = copy.deepcopy(model).cpu().to(dtype).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=dtype)

    with torch.no_grad():
        for module in working.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.copy_(0.1 * noise(module.running_mean))
                if module.running_var is not None:
                    module.running_var.copy_(0.75 + 0.1 * noise(module.running_var).abs())
                if module.weight is not None:
                    module.weight.copy_(1 + 0.2 * noise(module.weight))
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and bias.is_floating_point():
                bias.copy_(0.1 * noise(bias))
    return working


def _each(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``example`` with all its tensors changed."""

    def convert(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return {key: convert(value) for key, value in example.items()}
    return tuple(convert(value) for value in example)


def _informative(example: Any) -> Any:
    """Noise in place of an image or sequence that is the same everywhere: it would show little."""
    generator = torch.Generator().manual_seed(1)

    def convert(value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.ndim < 3 or not value.numel():
            return value
        if bool((value != value.flatten()[0]).any()):
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    return _each(example, convert)


def _batch_of_two(example: Any) -> Any:
    return _each(example, lambda value: torch.cat([value, value]) if value.ndim else value)
