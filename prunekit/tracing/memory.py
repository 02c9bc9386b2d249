"""Which activations are alive when: what a forward needs in memory, at any widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.core.graph import Buffer, ChannelGroup, Side, Span
from prunekit.tracing.calls import Call, flat

if TYPE_CHECKING:
    from prunekit.tracing.follow_dispatch import Flow

SIDES = 2
"""Axes of channels of one activation that are followed; further ones count in full."""
FOR_TRAINING = ("norm", "max_pool", "attention")
"""Operators whose results after the first are for training alone."""


@dataclass(eq=False)
class _Held:
    """Memory that one operator writes and others read; ``parts`` are its labels then."""

    shape: tuple[int, ...]
    itemsize: int
    parts: list[Tensor]
    first: int
    last: int


@dataclass(frozen=True)
class _Step:
    """What one operator read, and what it wrote anew."""

    name: str
    read: list[_Held]
    written: list[_Held]


class Ledger:
    """Follows the storage of every activation through one forward.

    Views and in-place operators share their input's. Parameters are not activations.
    """

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._of: Any = WeakTensorKeyDictionary()
        self._constant: Any = WeakTensorKeyDictionary()

    def note(self, flow: Flow, call: Call) -> None:
        """One operator, after its results were labelled."""
        number = len(self.steps)
        read: list[_Held] = []
        for tensor in call.tensors:
            held = self._input(flow, tensor)
            if held is not None and held not in read:
                held.last = number
                read.append(held)
        written = []
        results = flat(call.out)
        if any(word in call.name for word in FOR_TRAINING):
            results = results[:1]
        for tensor in results:
            source = next((t for t in call.tensors if _same_storage(t, tensor)), None)
            if source is not None:
                for table in (self._of, self._constant):
                    if source in table:
                        table[tensor] = table[source]
            elif tensor.numel() and not tensor.is_nested:
                self._of[tensor] = self._new(flow, tensor, number)
                written.append(self._of[tensor])
        self.steps.append(_Step(call.name, read, written))

    def _input(self, flow: Flow, tensor: Tensor) -> _Held | None:
        if tensor in self._of:
            found: _Held = self._of[tensor]
            return found
        if tensor in self._constant or tensor.is_nested:
            return None
        if flow.owners(tensor) or not tensor.numel():
            self._constant[tensor] = True
            return None
        self._of[tensor] = held = self._new(flow, tensor, 0)  # an input of the network
        return held

    @staticmethod
    def _new(flow: Flow, tensor: Tensor, number: int) -> _Held:
        return _Held(tuple(tensor.shape), tensor.element_size(), flow.parts(tensor), number, number)

    def keep(self, outputs: Sequence[Tensor]) -> None:
        """The network's outputs are alive to the end."""
        for tensor in outputs:
            if tensor in self._of:
                self._of[tensor].last = len(self.steps)

    def buffers(self, flow: Flow, groups: Sequence[ChannelGroup]) -> tuple[Buffer, ...]:
        """Everything that was alive, by the widths of ``groups``, once the labels are settled.

        An operator on single positions writes over an input of its size that nobody reads after.
        """
        from prunekit.tracing.operators.pointwise import IN_PLACE

        every: dict[int, _Held] = {}
        for number, step in enumerate(self.steps):
            every |= {id(held): held for held in (*step.read, *step.written)}
            if step.name.rstrip("_") in IN_PLACE or "batch_norm" in step.name:
                for new in step.written:
                    size = math.prod(new.shape) * new.itemsize
                    for old in step.read:
                        if old.last == number and math.prod(old.shape) * old.itemsize == size:
                            old.last = number - 1
                            break
        group_of = _groups_by_root(flow, groups)
        alive = [held for held in every.values() if held.last >= held.first]
        return tuple(_buffer(flow, held, groups, group_of) for held in alive)


def _same_storage(one: Tensor, other: Tensor) -> bool:
    if any(t.is_nested or t.layout != torch.strided for t in (one, other)):
        return False
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _groups_by_root(flow: Flow, groups: Sequence[ChannelGroup]) -> dict[int, int]:
    """The number of the group that a node's representative belongs to."""
    found: dict[int, int] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            ids = flow.nodes.of((member.module, member.role))
            roots = flow.nodes.roots(ids)[torch.from_numpy(member.index)]
            found.update(dict.fromkeys(roots.flatten().tolist(), number))
    return found


def _buffer(
    flow: Flow, held: _Held, groups: Sequence[ChannelGroup], group_of: dict[int, int]
) -> Buffer:
    """``held`` as a product of sides, each of which a number of groups' channels make up."""
    positions = math.prod(held.shape)
    sides: list[Side] = []
    for part in held.parts:
        if len(sides) == SIDES or part.numel() == 1:
            continue
        roots, counts = np.unique(flow.nodes.roots(part.flatten()).numpy(), return_counts=True)
        by_group: dict[int, int] = {}
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            number = group_of.get(root)
            if number is not None and groups[number].prunable:
                by_group[number] = by_group.get(number, 0) + count
        # of a group that is there in part, the channels that are kept may all be in that part
        whole = {n: c for n, c in by_group.items() if c % groups[n].size == 0}
        spans = tuple(
            Span(groups[n].id, groups[n].size, count // groups[n].size)
            for n, count in sorted(whole.items())
        )
        if spans:
            sides.append(Side(part.numel() - sum(whole.values()), spans))
            positions //= part.numel()
    return Buffer(positions * held.itemsize, held.first, held.last, tuple(sides))
