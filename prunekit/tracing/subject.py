"""What a proof runs: a randomised copy of a model, and an input that its output tells of."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.networks.masking import mask_
from prunekit.networks.running import call, each
from prunekit.networks.slimming import copied
from prunekit.tracing.other_runs import Exports, FlippedAnswers, flips, variants
from prunekit.tracing.randomise import randomised
from prunekit.tracing.values import batch_of_two, comparable

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest relative difference between the masked and the slim network's outputs."""
LARGE = 50_000_000
"""Parameters above which copies in float64 would take too much memory."""
HEAVY = 20_000_000_000
"""Multiply-accumulates of one sample above which float64 would take too long."""
OTHERS_SECONDS = 5.0
"""How long it may take to run a subject in other ways than the example's."""
SUBJECTS = 4
"""Randomised copies that are tried for one whose output tells."""

Outputs = list[Tensor]


@dataclass(frozen=True)
class Masked:
    """The outputs of a subject on its example with a plan's channels zeroed."""

    plan: ChannelPlan
    outputs: Outputs


@dataclass(frozen=True)
class Subject:
    """What the proof runs: a randomised copy of the model, and an input that shows something."""

    model: nn.Module
    example: Any
    dtype: torch.dtype
    dense: Outputs | None
    """The model's outputs on the example; None where it does not run."""
    others: tuple[tuple[Any, FlippedAnswers], ...] = ()
    """Further examples, and which values asked for to flip while they run."""
    masked: Masked | None = None
    """What was found out while the subject was chosen."""

    @property
    def tolerance(self) -> float:
        """How far outputs may be apart."""
        return TOLERANCE[self.dtype]

    @cached_property
    def trains(self) -> bool:
        """Whether the model runs in training mode (a detector does not, without targets)."""
        return runs(copy.deepcopy(self.model).train(), batch_of_two(self.example)) is not None

    def outputs(self, model: nn.Module, *, others: bool) -> Outputs:
        """All outputs of the subject's model, or of one made from it."""
        ways = [(self.example, FlippedAnswers()), *(self.others if others else ())]
        with torch.no_grad():
            return [t for example, flipped in ways for t in outputs_of(model, example, flipped)]

    def zeroed(self, plan: ChannelPlan, *, others: bool) -> Outputs:
        """All outputs of the subject's model with the channels zeroed that ``plan`` removes."""
        known = self.masked
        if known is not None and known.plan == plan and not (others and self.others):
            return known.outputs
        return self.outputs(mask_(copied(self.model), plan), others=others)

    def train(self, small: nn.Module, dtype: torch.dtype) -> None:
        """Run ``small`` in training mode, in place; only whether that raises matters."""
        example = each(
            batch_of_two(self.example), lambda t: t.to(dtype) if t.is_floating_point() else t
        )
        with torch.no_grad():
            outputs_of(small.to(dtype).train(), example)


def telling(model: nn.Module, graph: ChannelGraph, example: Any, train_mode: bool) -> Subject:
    """A subject whose output depends on what is removed: one of dead neurons shows nothing."""
    plan = random_plan(graph, None, 0)
    for seed in range(SUBJECTS):
        subject = _subject(model, graph.macs({}), example, train_mode, seed)
        if plan.is_dense:
            break
        with suppress(Exception):
            masked = Masked(plan, subject.zeroed(plan, others=False))
            subject = replace(subject, masked=masked)
            if subject.dense is not None and difference(subject.dense, masked.outputs, 1e-9):
                break
    return subject


def _subject(model: nn.Module, macs: int, example: Any, train_mode: bool, seed: int) -> Subject:
    """In float64, or in float32 for a model that is large or insists on it somewhere."""
    large = macs > HEAVY or sum(p.numel() for p in model.parameters()) > LARGE
    for dtype in [torch.float32] if large else TOLERANCE:

        def cast(value: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

        plain = each(example, cast)
        shown, counter = _informative(plain), FlippedAnswers()
        working = randomised(model, shown, dtype, seed, counter)
        dense = runs(working, shown)
        if dense is None:
            shown, dense = plain, runs(working, plain)
            counter.asked.append(True)  # not known of this example
        if dense is not None:
            break
    asked = _asked(working, shown) if counter.asked else []
    ways = [(e, FlippedAnswers()) for e in _unlike(shown)] if asked else []
    ways += [(shown, flipped) for flipped in flips(asked)]
    ways += [(other, FlippedAnswers()) for other in variants(shown)] if train_mode else []
    until = time.monotonic() + OTHERS_SECONDS
    others = tuple(
        (other, flipped)
        for other, flipped in ways
        if time.monotonic() < until and runs(working, other, flipped) is not None
    )
    return Subject(working, shown, dtype, dense, others)


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


def runs(model: nn.Module, example: Any, flipped: FlippedAnswers | None = None) -> Outputs | None:
    """The model's outputs; None where it does not take the example."""
    try:
        with torch.no_grad():
            return outputs_of(model, example, flipped)
    except Exception:  # the model's own code may raise anything
        return None


def random_plan(graph: ChannelGraph, only: str | None, number: int) -> ChannelPlan:
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


def difference(expected: list[Tensor], actual: list[Tensor], tolerance: float) -> str | None:
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


def outputs_of(model: nn.Module, example: Any, flipped: FlippedAnswers | None = None) -> Outputs:
    """All that can be compared of what a model gives, with the same random numbers each time."""
    with _same_random_numbers(), flipped.again() if flipped and flipped.which else nullcontext():
        # a model may return what it keeps, which changes
        return [value.clone() for value in comparable(call(model, example))]


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
