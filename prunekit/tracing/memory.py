"""Which activations are alive when: what a forward needs in memory, at any widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.core.graph import Buffer, ChannelGroup, Side, Span
from prunekit.tracing.calls import IN_PLACE, Call, flat
from prunekit.tracing.labels import Labels, Part
from prunekit.tracing.nodes import Nodes

SIDES = 2
"""Axes of channels of one activation that are followed; further ones count in full."""
FOR_TRAINING = ("norm", "max_pool", "attention")
"""Operators whose results after the first are for training alone."""


@dataclass(eq=False)
class _Activation:
    """Memory that one operator writes and others read; ``parts`` are its labels then."""

    shape: tuple[int, ...]
    itemsize: int
    parts: list[Part]
    first: int
    last: int

    @property
    def bytes(self) -> int:
        """What it takes at full width."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class _Step:
    """What one operator read, and what it wrote anew."""

    name: str
    read: list[_Activation]
    written: list[_Activation]


class Ledger:
    """Follows the storage of every activation through one forward.

    Views and in-place operators share their input's. Parameters are not activations.
    """

    def __init__(self, labels: Labels) -> None:
        self.steps: list[_Step] = []
        self._labels = labels
        self._of: Any = WeakTensorKeyDictionary()
        self._constant: Any = WeakTensorKeyDictionary()

    def note(self, call: Call) -> None:
        """One operator, after its results were labelled."""
        number = len(self.steps)
        read: list[_Activation] = []
        for tensor in call.tensors:
            activation = self._input(tensor)
            if activation is not None and activation not in read:
                activation.last = number
                read.append(activation)
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
                self._of[tensor] = self._new(tensor, number)
                written.append(self._of[tensor])
        self.steps.append(_Step(call.name, read, written))

    def _input(self, tensor: Tensor) -> _Activation | None:
        if tensor in self._of:
            known: _Activation = self._of[tensor]
            return known
        if tensor in self._constant or tensor.is_nested:
            return None
        if self._labels.own.owners(tensor) or not tensor.numel():
            self._constant[tensor] = True
            return None
        self._of[tensor] = activation = self._new(tensor, 0)  # an input of the network
        return activation

    def _new(self, tensor: Tensor, number: int) -> _Activation:
        parts = self._labels.parts(tensor)
        return _Activation(tuple(tensor.shape), tensor.element_size(), parts, number, number)

    def keep(self, outputs: Sequence[Tensor]) -> None:
        """The network's outputs are alive to the end."""
        for tensor in outputs:
            if tensor in self._of:
                self._of[tensor].last = len(self.steps)

    def buffers(self, groups: Sequence[ChannelGroup]) -> tuple[Buffer, ...]:
        """Everything that was alive, by the widths of ``groups``, once the labels are settled.

        An operator on single positions writes over an input of its size that nobody reads after.
        """
        every: dict[int, _Activation] = {}
        for number, step in enumerate(self.steps):
            every |= {id(activation): activation for activation in (*step.read, *step.written)}
            if step.name.rstrip("_") in IN_PLACE or "batch_norm" in step.name:
                for new in step.written:
                    for old in step.read:
                        if old.last == number and old.bytes == new.bytes:
                            old.last = number - 1
                            break
        nodes = self._labels.nodes
        group_of = _groups_by_root(nodes, groups)
        alive = [activation for activation in every.values() if activation.last >= activation.first]
        return tuple(_buffer(nodes, activation, groups, group_of) for activation in alive)


def _same_storage(one: Tensor, other: Tensor) -> bool:
    if any(t.is_nested or t.layout != torch.strided for t in (one, other)):
        return False
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _groups_by_root(nodes: Nodes, groups: Sequence[ChannelGroup]) -> dict[int, int]:
    """The number of the group that a node's representative belongs to."""
    numbers: dict[int, int] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            ids = nodes.of((member.module, member.role))
            roots = nodes.roots(ids)[torch.from_numpy(member.index)]
            numbers.update(dict.fromkeys(roots.flatten().tolist(), number))
    return numbers


def _buffer(
    nodes: Nodes, activation: _Activation, groups: Sequence[ChannelGroup], group_of: dict[int, int]
) -> Buffer:
    """``activation`` as a product of sides, each of which a number of groups' channels make up."""
    positions = math.prod(activation.shape)
    sides: list[Side] = []
    for part in activation.parts:
        if len(sides) == SIDES or part.numel() == 1:
            continue
        roots, counts = np.unique(nodes.roots(part.flatten()).numpy(), return_counts=True)
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
    return Buffer(positions * activation.itemsize, activation.first, activation.last, tuple(sides))
