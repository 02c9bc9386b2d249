"""Proof on a randomised copy: what cannot be shown to slim exactly is frozen, with the reason."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.core.graph import ChannelGraph, ChannelGroup
from prunekit.core.plan import ChannelPlan
from prunekit.core.role import Role
from prunekit.networks.masking import mask_
from prunekit.networks.running import call, each
from prunekit.networks.slimming import copied, slim
from prunekit.support.errors import first_line
from prunekit.tracing.other_runs import Exports, FlippedAnswers, flips, variants
from prunekit.tracing.randomise import randomised
from prunekit.tracing.values import batch_of_two, comparable

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest relative difference between the masked and the slim network's outputs."""
LARGE = 50_000_000
"""Parameters above which copies in float64 would take too much memory."""
HEAVY = 20_000_000_000
"""Multiply-accumulates of one sample above which float64 would take too long."""
SECONDS = 120.0
OTHERS_SECONDS = 5.0
"""How long it may take to run a subject in other ways than the example's."""
SUBJECTS = 4
"""Randomised copies that are tried for one whose output tells."""
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
    subject = _telling(model, graph, example, train_mode)
    deadline = time.monotonic() + SECONDS
    return _not_too_narrow(subject, _exact(subject, graph, deadline), deadline)


def _exact(subject: _Subject, graph: ChannelGraph, deadline: float) -> ChannelGraph:
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


def _not_too_narrow(subject: _Subject, graph: ChannelGraph, deadline: float) -> ChannelGraph:
    """``graph`` with two channels at least where one alone fails, such as before a ``squeeze``."""
    narrow = [group.id for group in graph.groups if group.prunable]
    ranks = [t.ndim for t in subject.outputs(subject.model, others=False)] if narrow else []

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


def _ranks_of_one(subject: _Subject, graph: ChannelGraph, groups: list[str]) -> list[int] | None:
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


@dataclass(frozen=True)
class _Subject:
    """What the proof runs: a randomised copy of the model, and an input that shows something."""

    model: nn.Module
    example: Any
    tolerance: float
    trains: bool
    others: tuple[tuple[Any, FlippedAnswers], ...] = ()
    """Further examples, and which values asked for to flip while they run."""

    def outputs(self, model: nn.Module, *, others: bool) -> list[Tensor]:
        """All outputs of the subject's model, or of one made from it."""
        runs = [(self.example, FlippedAnswers()), *(self.others if others else ())]
        with torch.no_grad():
            return [t for example, flipped in runs for t in _outputs(model, example, flipped)]


def _telling(model: nn.Module, graph: ChannelGraph, example: Any, train_mode: bool) -> _Subject:
    """A subject whose output depends on what is removed: one of dead neurons shows nothing."""
    for seed in range(SUBJECTS):
        subject = _subject(model, graph.macs({}), example, train_mode, seed)
        plan = _plan(graph, None, 0)
        if plan.is_dense:
            break
        with suppress(Exception), torch.no_grad():
            masked = _outputs(mask_(copied(subject.model), plan), subject.example)
            if _difference(_outputs(subject.model, subject.example), masked, 1e-9):
                break
    return subject


def _subject(model: nn.Module, macs: int, example: Any, train_mode: bool, seed: int) -> _Subject:
    """In float64, or in float32 for a model that is large or insists on it somewhere."""
    large = macs > HEAVY or sum(p.numel() for p in model.parameters()) > LARGE
    for dtype in [torch.float32] if large else TOLERANCE:

        def cast(value: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

        given = each(example, cast)
        telling = _informative(given)
        working = randomised(model, telling, dtype, seed)
        shown = next((e for e in (telling, given) if _runs(working, e)), None)
        if shown is not None:
            break
    given = given if shown is None else shown
    trains = _runs(copy.deepcopy(working).train(), batch_of_two(given))
    asked = _asked(working, given)
    others = [(e, FlippedAnswers()) for e in _unlike(given)] if asked else []
    others += [(given, flipped) for flipped in flips(asked)]
    others += [(other, FlippedAnswers()) for other in variants(given)] if train_mode else []
    until = time.monotonic() + OTHERS_SECONDS
    others = [
        (other, flipped)
        for other, flipped in others
        if time.monotonic() < until and _runs(working, other, flipped)
    ]
    return _Subject(working, given, TOLERANCE[dtype], trains, tuple(others))


def _asked(model: nn.Module, example: Any) -> list[bool]:
    """For every value that the model asks for whether it is a truth value."""
    counter = FlippedAnswers()
    exports = Exports(lambda: counter.asked.append(True))
    with suppress(Exception), torch.no_grad(), exports, counter:
        call(model, example)
    return counter.asked


def _unlike(example: Any) -> list[Any]:
    """Other examples of the same size: noise of other sizes, texts the other way round."""
    generator = torch.Generator().manual_seed(2)

    def unlike(scale: float) -> Any:
        def convert(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value.flip(-1) if value.ndim and value.layout == torch.strided else value
            return scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)

        return each(example, convert)

    return [unlike(scale) for scale in (1.0, 3.0, 0.3)]


def _runs(model: nn.Module, example: Any, flipped: FlippedAnswers | None = None) -> bool:
    """Whether the model takes the example (a detector does not, when training, without targets)."""
    try:
        with torch.no_grad():
            _outputs(model, example, flipped)
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
        others, mode = number == 0, ""
        try:
            small = slim(subject.model, plan)
            if mismatch := _widths_differ(small, graph, plan):
                return _Failure(mismatch)
            outputs = subject.outputs(small, others=others)
            if subject.trains and others:
                mode = " in training mode"
                with torch.no_grad():
                    _outputs(copy.deepcopy(small).train(), batch_of_two(subject.example))
        except Exception as error:  # the model's own code may raise anything
            cause = first_line(error)
            module = None if small is None else _raised_in(error, small)
            where = f" in {module} ({type(small.get_submodule(module)).__name__})" if module else ""
            return _Failure(f"the slim network fails{where}{mode}: {cause}", module)
        if only_run:
            continue
        del small
        try:
            masked = mask_(copied(subject.model), plan)
            expected = subject.outputs(masked, others=others)
        except Exception as error:
            return _Failure(f"the masked network fails: {type(error).__name__}")
        if difference := _difference(expected, outputs, subject.tolerance):
            return _Failure(difference)
        whole = [not t.is_floating_point() for t in expected]
        if any(whole):
            count = PLANS_OF_INDICES if all(whole) else PLANS_OF_BOTH
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


def _difference(expected: list[Tensor], actual: list[Tensor], tolerance: float) -> str | None:
    """How the slim network's outputs differ from the masked one's, or None."""
    if len(expected) != len(actual):
        return f"the slim network has {len(actual)} outputs, not {len(expected)}"
    for wanted, given in zip(expected, actual, strict=True):
        if wanted.shape != given.shape:
            return f"the output's shape changes from {tuple(wanted.shape)} to {tuple(given.shape)}"
        if not wanted.numel():
            continue
        wanted, given = wanted.double(), given.double()
        scale = wanted.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp_min(1e-12)
        apart = torch.where(wanted == given, 0.0, (wanted - given).abs())
        difference = float(apart.max() / scale)
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


def _outputs(model: nn.Module, example: Any, flipped: FlippedAnswers | None = None) -> list[Tensor]:
    with _same_random_numbers(), flipped.again() if flipped and flipped.which else nullcontext():
        return comparable(call(model, example))


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """The same random numbers every time, and afterwards those that would have come."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


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
