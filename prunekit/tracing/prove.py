"""Proof on a randomised copy: what cannot be shown to slim exactly is frozen, with the reason."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from prunekit.core.graph import ChannelGraph, ChannelGroup
from prunekit.core.plan import ChannelPlan
from prunekit.core.role import Role
from prunekit.networks.slimming import slim
from prunekit.support.errors import first_line
from prunekit.support.threads import threads
from prunekit.tracing.subject import Subject, difference, random_plan, telling

SMALL = 5_000_000_000
"""Multiply-accumulates of one sample up to which several threads would be a waste."""
SECONDS = 120.0
PLANS = 2
"""Plans that have to be exact."""
PLANS_OF_INDICES = 8
"""Whole numbers in the output, such as an argmax, often come out right by chance."""
PLANS_OF_BOTH = 4
"""Where other outputs are not whole, such as a detector's labels beside its scores and boxes."""
SIDES: tuple[Literal["in", "out"], ...] = ("in", "out")


def prove(
    model: nn.Module, graph: ChannelGraph, example: Any, *, train_mode: bool = False
) -> ChannelGraph:
    """``graph`` with every group frozen whose removal could not be proved exact.

    With ``train_mode``, for layers that evaluation did not come to, also on other sizes.
    """
    with threads(1) if graph.macs({}) <= SMALL else nullcontext():
        subject = telling(model, graph, example, train_mode)
        deadline = time.monotonic() + SECONDS
        return _not_too_narrow(subject, _exact(subject, graph, deadline), deadline)


def _exact(subject: Subject, graph: ChannelGraph, deadline: float) -> ChannelGraph:
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
        reason = late
        if time.monotonic() <= deadline:
            together = _failure(subject, _freeze(frozen, waiting), None)
            reason = together.reason if together else ""
        if reason:
            frozen = _freeze(frozen, {group_id: f"together with the groups before it: {reason}"})
    return frozen


def _not_too_narrow(subject: Subject, graph: ChannelGraph, deadline: float) -> ChannelGraph:
    """``graph`` with two channels at least where one alone fails, such as before a ``squeeze``."""
    narrow = [group.id for group in graph.groups if group.prunable]
    ranks = [t.ndim for t in subject.dense or ()]

    def enough(groups: list[str]) -> bool:
        return _ranks_of_one(subject, graph, groups) == ranks

    while narrow and not enough(narrow):
        alone = []
        if time.monotonic() <= deadline:
            alone = [name for name in narrow if not enough([name])]
        narrow = [name for name in narrow if alone and name not in alone]
    groups = tuple(
        replace(group, min_width=2) if group.prunable and group.id not in narrow else group
        for group in graph.groups
    )
    return replace(graph, groups=groups)


def _ranks_of_one(subject: Subject, graph: ChannelGraph, groups: list[str]) -> list[int] | None:
    """The outputs' ranks with one channel of each of these groups; None if that does not run."""
    try:
        small = slim(subject.model, ChannelPlan.from_keep(graph, {name: [0] for name in groups}))
        return [t.ndim for t in subject.outputs(small, others=False)]
    except Exception:  # the model's own code may raise anything
        return None


@dataclass(frozen=True)
class _Failure:
    """Why a plan is not exact, and the module whose code raised it, if any did."""

    reason: str
    module: str | None = None


def _culprits(
    subject: Subject, graph: ChannelGraph, failure: _Failure, deadline: float
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


def _roles(group: ChannelGroup, module: str) -> frozenset[tuple[str, Role]]:
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
    innermost, trace = None, error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names and any(module.children()):
            innermost = names[id(module)]
        trace = trace.tb_next
    return innermost


def _freeze(graph: ChannelGraph, reasons: dict[str, str]) -> ChannelGraph:
    groups = tuple(
        replace(group, prunable=False, reason=reasons[group.id]) if group.id in reasons else group
        for group in graph.groups
    )
    return replace(graph, groups=groups)


def _failure(
    subject: Subject, graph: ChannelGraph, only: str | None, *, only_run: bool = False
) -> _Failure | None:
    """Why a plan (over all prunable groups, or one) is not exact, or None when all tried are.

    With ``only_run`` one that does not run or has other widths.
    """
    count = PLANS
    for number in range(PLANS_OF_INDICES):
        if number >= count:
            break
        plan = random_plan(graph, only, number)
        small: Any = None
        others, mode = number == 0, ""
        try:
            small = slim(subject.model, plan)
            if mismatch := _widths_differ(small, graph, plan):
                return _Failure(mismatch)
            outputs = subject.outputs(small, others=others)
            if others and not _trains(subject, small):
                mode = " in training mode"
                small = slim(subject.model, plan)
                subject.train(small, subject.dtype)
        except Exception as error:  # the model's own code may raise anything
            if not mode or subject.trains:
                return _raised(error, small, mode)
        if only_run:
            continue
        del small
        try:
            expected = subject.zeroed(plan, others=others)
        except Exception as error:
            return _Failure(f"the masked network fails: {type(error).__name__}")
        if apart := difference(expected, outputs, subject.tolerance):
            return _Failure(apart)
        whole = [not t.is_floating_point() for t in expected]
        if any(whole):
            count = PLANS_OF_INDICES if all(whole) else PLANS_OF_BOTH
    return None


def _trains(subject: Subject, small: nn.Module) -> bool:
    """Whether a slim network, which is not used any more, runs in training mode in float32."""
    try:
        subject.train(small, torch.float32)
    except Exception:  # the model's own code may raise anything
        return False
    return True


def _raised(error: Exception, small: nn.Module | None, mode: str) -> _Failure:
    """The failure that an error in a slim network is; None: it could not be made."""
    module = None if small is None else _raised_in(error, small)
    where = ""
    if small is not None and module:
        where = f" in {module} ({type(small.get_submodule(module)).__name__})"
    return _Failure(f"the slim network fails{where}{mode}: {first_line(error)}", module)


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
