"""Proof on a randomised copy: what cannot be shown to slim exactly is frozen, with the reason."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph, ChannelGroup
from prunekit.masks import mask_
from prunekit.plan import ChannelPlan
from prunekit.surgery import slim
from prunekit.tracing.atoms import batch_of_two, call, each, tensors
from prunekit.tracing.lively import lively

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest relative difference between the masked and the slim network's outputs."""
LARGE = 50_000_000
"""Parameters above which copies in float64 would take too much memory."""
SECONDS = 120.0
SUBJECTS = 4
"""Randomised copies that are tried for one whose output tells."""
PLANS = 2
"""Plans that have to be exact."""
PLANS_OF_INDICES = 8
"""Whole numbers in the output, such as an argmax, often come out right by chance."""
SIDES: tuple[Literal["in", "out"], ...] = ("in", "out")


def prove(
    model: nn.Module, graph: ChannelGraph, example: Any, *, train_mode: bool = False
) -> ChannelGraph:
    """``graph`` with every group frozen whose removal could not be proved exact."""
    subject = _telling(model, graph, example, train_mode)
    deadline = time.monotonic() + SECONDS
    frozen = graph
    while (failure := _failure(subject, frozen, None)) is not None:
        reasons = _culprits(subject, frozen, failure, deadline)
        if not reasons:
            break
        frozen = _freeze(frozen, reasons)
    if failure is None:
        return frozen
    reasons = {}
    late = f"not proved within {SECONDS:.0f} s"
    for group in frozen.groups:
        if not group.prunable:
            continue
        if time.monotonic() > deadline:
            reasons[group.id] = late
        elif alone := _failure(subject, frozen, group.id):
            reasons[group.id] = alone.reason
    frozen = _freeze(frozen, reasons)
    if _failure(subject, frozen, None) is None:
        return frozen
    waiting = {group.id: late for group in frozen.groups if group.prunable}
    for group_id in list(waiting):  # each alone is exact, all together are not: one by one
        del waiting[group_id]
        found = late
        if time.monotonic() <= deadline:
            together = _failure(subject, _freeze(frozen, waiting), None)
            found = together.reason if together else ""
        if found:
            frozen = _freeze(frozen, {group_id: f"together with the groups before it: {found}"})
    return frozen


@dataclass(frozen=True)
class _Failure:
    """Why a plan is not exact, and the module whose code raised it, if any did."""

    reason: str
    module: str | None = None


def _culprits(
    subject: _Subject, graph: ChannelGraph, failure: _Failure, deadline: float
) -> dict[str, str]:
    """A group at the module that failed which fails alone, and its like at modules of its type."""
    if failure.module is None or time.monotonic() > deadline:
        return {}
    modules = dict(subject.model.named_modules())
    suspects = [g for g in graph.groups if g.prunable and _roles(g, failure.module)]
    for group in suspects:
        if time.monotonic() > deadline:
            break
        alone = _failure(subject, graph, group.id, only_run=True)
        if alone is None:
            continue
        kind, roles = type(modules[failure.module]), _roles(group, failure.module)
        alike = {name for name, module in modules.items() if type(module) is kind}
        return {
            other.id: alone.reason
            for other in graph.groups
            if other.prunable
            and (other is group or any(_roles(other, name) == roles for name in alike))
        }
    return {}


def _roles(group: ChannelGroup, module: str) -> frozenset[tuple[str, str]]:
    """Where inside of ``module`` a group has members."""
    inside = f"{module}." if module else ""
    return frozenset(
        (member.module[len(inside) :] if member.module != module else "", member.role)
        for member in group.members
        if member.module == module or member.module.startswith(inside)
    )


def _raised_in(error: BaseException, model: nn.Module) -> str | None:
    """The innermost module made of others whose code raised ``error``."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names and any(module.children()):
            found = names[id(module)]
        trace = trace.tb_next
    return found


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


def _telling(model: nn.Module, graph: ChannelGraph, example: Any, train_mode: bool) -> _Subject:
    """A subject whose output depends on what is removed: one of dead neurons shows nothing."""
    for seed in range(SUBJECTS):
        subject = _subject(model, example, train_mode, seed)
        plan = _plan(graph, None, 0)
        if plan.is_dense:
            break
        with suppress(Exception), torch.no_grad():
            masked = _outputs(mask_(copy.deepcopy(subject.model), plan), subject.example)
            if _difference(_outputs(subject.model, subject.example), masked, 1e-9):
                break
    return subject


def _subject(model: nn.Module, example: Any, train_mode: bool, seed: int) -> _Subject:
    """In float64, or in float32 for a model that is large or insists on it somewhere."""
    large = sum(p.numel() for p in model.parameters()) > LARGE
    for dtype in [torch.float32] if large else TOLERANCE:

        def cast(value: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

        given = each(example, cast)
        telling = _informative(given)
        working = lively(model, telling, dtype, seed)
        shown = next((e for e in (telling, given) if _runs(working, e)), None)
        if shown is not None:
            break
    given = given if shown is None else shown
    trains = train_mode and _runs(copy.deepcopy(working).train(), batch_of_two(given))
    return _Subject(working, given, TOLERANCE[dtype], trains)


def _runs(model: nn.Module, example: Any) -> bool:
    """Whether the model takes the example (a detector does not, when training, without targets)."""
    try:
        with torch.no_grad():
            _outputs(model, example)
    except Exception:
        return False
    return True


def _failure(
    subject: _Subject, graph: ChannelGraph, only: str | None, *, only_run: bool = False
) -> _Failure | None:
    """Why a plan (over all prunable groups, or one) is not exact, or None when all tried are.

    With ``only_run`` one that does not run or has other widths.
    """
    count = PLANS
    for number in range(PLANS_OF_INDICES):
        if number >= count:
            break
        plan = _plan(graph, only, number)
        small: Any = None
        try:
            small = slim(subject.model, plan)
            if mismatch := _widths_differ(small, graph, plan):
                return _Failure(mismatch)
            with torch.no_grad():
                found = _outputs(small, subject.example)
                if subject.trains:
                    _outputs(copy.deepcopy(small).train(), batch_of_two(subject.example))
        except Exception as error:  # the model's own code may raise anything
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            module = None if small is None else _raised_in(error, small)
            where = f" in {module} ({type(small.get_submodule(module)).__name__})" if module else ""
            return _Failure(f"the slim network fails{where}: {cause}", module)
        if only_run:
            continue
        del small
        masked = mask_(copy.deepcopy(subject.model), plan)
        with torch.no_grad():
            expected = _outputs(masked, subject.example)
        if difference := _difference(expected, found, subject.tolerance):
            return _Failure(difference)
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
        step = number % 2 if i % 2 == 0 and only is None else -(number % 2)
        width = min(max(wanted[group.id] + step, 1), group.size - 1)
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
        own = module.weight.numel() + (0 if module.bias is None else module.bias.numel())
        expected = layer.params(layer.width("in", plan.widths), layer.width("out", plan.widths))
        if own != expected:
            return f"{layer.name} would have {own} parameters, not {expected}"
    return None


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    return tensors(call(model, example))


def _informative(example: Any) -> Any:
    """Noise in place of an image or sequence that is the same everywhere: it would show little."""
    generator = torch.Generator().manual_seed(1)

    def convert(value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.ndim < 3 or not value.numel():
            return value
        if bool((value != value.flatten()[0]).any()):
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    return each(example, convert)
