"""Which channels the positions of every tensor belong to.

A tensor's labels are a list of *parts*. A part is an int64 tensor of the same rank with size one on
every axis along which it is constant: the node (see :mod:`prunekit.tracing.nodes`) that each
position belongs to. Parts of one tensor vary along different axes; a tensor without parts holds
positions that stay as they are. Operators that only move data are applied to the labels as they
are; the others have a small function each in :mod:`prunekit.tracing.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.core.role import BOTH, IN, OUT, Role
from prunekit.networks.slimming import is_depthwise
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.tracing.modules import Owner, OwnTensors, RunningModules
from prunekit.tracing.nodes import Nodes, Slot

Part = Tensor
INNER_WIDTHS = ("attn_dim", "inner_dim", "all_head_size")
"""What modules call the number of heads times the width of one."""
HEAD_WIDTHS = ("head_dim", "dim_head", "head_size", "attention_head_size")
"""What they call the width of one."""
LARGEST = 4_000_000
"""Positions of a part that varies along several axes, above which its nodes are frozen instead."""


@dataclass(frozen=True, eq=False)
class Split:
    """An axis of channels that was split into several: what is kept must stay a block."""

    part: Part
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    module: str


class Labels:
    """The labels of all tensors of a forward, and what operators do to them."""

    def __init__(self, own: OwnTensors, running: RunningModules, *, whole_heads: bool) -> None:
        self.nodes = Nodes()
        self.own, self.running = own, running
        self.whole_heads = whole_heads
        """Whether a head of an attention goes as a whole, or channels go from every head."""
        self.operator = ""
        """What is running."""
        self.splits: list[Split] = []
        self.pieces: list[Part] = []
        """What goes together position by position, stacked; joined when the forward is over."""
        self._parts: Any = WeakTensorKeyDictionary()

    @property
    def where(self) -> str:
        """The running module, in words."""
        return self.running.where

    @property
    def constant(self) -> str:
        """Why channels stay that meet something without channels in the running operator."""
        doing = self.operator.strip("_")
        return f"{doing} in {self.where} combines it with values that stay as they are"

    def has(self, tensor: Tensor) -> bool:
        """Whether any of the tensor's positions may belong to a channel."""
        return bool(self._parts.get(tensor) or self.own.owners(tensor))

    def parts(self, tensor: Any) -> list[Part]:
        """The labels of ``tensor``."""
        if not isinstance(tensor, Tensor):
            return []
        if self.own.owners(tensor):
            axes = (self.axis_nodes(tensor, axis) for axis in range(tensor.ndim))
            return [along(ids, axis, tensor.ndim) for axis, ids in enumerate(axes) if len(ids) > 1]
        own_parts: list[Part] = self._parts.get(tensor, [])
        return own_parts

    def axis_nodes(self, tensor: Tensor, axis: int) -> Tensor:
        """The nodes of one axis of a parameter or buffer."""
        size = tensor.shape[axis]
        if size == 1:
            return torch.zeros(1, dtype=torch.int64)
        names = self.own.owners(tensor)
        ids = [self.nodes.of(slot_of(owner, axis), size) for owner in names]
        for other in ids[1:]:
            self.nodes.join(ids[0], other)
        return ids[0]

    def put(self, tensor: Any, parts: Sequence[Part]) -> None:
        """Label ``tensor``; parts that came to vary along the same axis are joined."""
        if isinstance(tensor, Tensor):
            self._parts[tensor] = self.combine(parts)

    def combine(self, parts: Iterable[Part]) -> list[Part]:
        """Parts along different axes: those that vary along the same are joined."""
        combined: list[Part] = []
        for part in parts:
            part = self.squash(part)
            while axes := varying(part):
                other = next((p for p in combined if set(axes) & set(varying(p))), None)
                if other is None:
                    combined.append(part)
                    break
                combined = [p for p in combined if p is not other]
                part = self.joined(part, other)
        return combined

    def joined(self, one: Part, other: Part) -> Part:
        """Both parts as one."""
        self.nodes.join(one, other)
        shape = np.broadcast_shapes(one.shape, other.shape)
        return self.squash(one.expand(shape))

    def squash(self, part: Part) -> Part:
        """``part`` by its roots, of size one along each axis on which they are all the same."""
        for axis in range(part.ndim):
            if part.shape[axis] > 1 and part.stride(axis) == 0:
                part = part.narrow(axis, 0, 1)
        roots = self.nodes.roots(part.contiguous())
        for axis in range(roots.ndim):
            if roots.shape[axis] > 1 and bool((roots == roots.narrow(axis, 0, 1)).all()):
                roots = roots.narrow(axis, 0, 1)
        return roots.contiguous()

    def collapse(self, part: Part, axes: Iterable[int]) -> Part:
        """Join what differs along ``axes`` only."""
        for axis in axes:
            if part.shape[axis] > 1:
                self.nodes.join(part, part.narrow(axis, 0, 1))
                part = part.narrow(axis, 0, 1)
        return self.squash(part)

    def freeze(self, parts: Iterable[Part], reason: str) -> None:
        """Whatever these parts belong to stays."""
        for part in parts:
            self.nodes.freeze(part, reason)

    def spared(self, parts: Sequence[Part], tables: Sequence[Part]) -> list[Part]:
        """``parts``, of heads that meet ``tables``; heads go as a whole then, the tables stay.

        A table varies along one axis of theirs and is of no layer: cosines of a rotation, or the
        scales of a norm. Joined position by position it would tie all heads to each other.
        """
        whole = list(parts)
        for table in tables:
            axes = set(varying(table))
            heads = [part for part in whole if axes < set(varying(part))]
            if heads:
                self.freeze([table], f"it meets the channels of all heads alike in {self.where}")
                whole = [
                    self.collapse(part, axes) if axes < set(varying(part)) else part
                    for part in whole
                ]
        return whole

    def is_table(self, part: Part) -> bool:
        """Whether a part varies along one axis and belongs to no layer."""
        if len(varying(part)) != 1:
            return False
        owners = {name for name, _ in self.nodes.touched(part)}
        return not any(isinstance(self.running.modules[name], LAYER_TYPES) for name in owners)

    def expanded(self, part: Part, tensor: Tensor) -> Tensor | None:
        """``part`` in the shape of ``tensor``, without copying; None (frozen) if far too large."""
        if len(varying(part)) > 1 and part.numel() > LARGEST:
            self.freeze([part], "its channels are spread over too many positions to follow")
            return None
        return part.expand(tensor.shape)

    # --- when the forward is over -------------------------------------------------------------

    def finish(self, outputs: Iterable[Tensor]) -> None:
        """The model's outputs stay; what was split into several axes is kept in whole blocks."""
        for tensor in outputs:
            self.freeze(self.parts(tensor), "it is the model's output")
        for part in self.pieces:
            self.collapse(part, [0])
        for split in self.splits:
            part = self.squash(split.part)
            while len(axes := varying(part)) > 1:
                part = self.collapse(part, axes[:1])
            if axes:
                self._tie_own_numbers(split, part, axes[0])

    def tie_number(self, ids: Tensor) -> None:
        """Let numbers that the running module keeps, and that count these channels, go with them.

        Code such as ``x.split(self.hidden, dim=1)`` needs them to shrink with the channels.
        """
        for name, number in vars(self.running.module).items():
            if type(number) is int and number == len(ids) > 1:
                self.nodes.join(
                    self.nodes.of((self.running.name, Role.of_number(name)), number), ids
                )

    def _tie_own_numbers(self, split: Split, part: Part, axis: int) -> None:
        """Tie a module's own numbers to what goes: its heads, or the channels of each."""
        size, ids, last = part.shape[axis], part.flatten(), axis == split.axes[-1]
        before = split.shape[axis - 1] if last else 1
        after = math.prod(split.shape[a] for a in split.axes if a > axis)
        inner = before * size * after
        for name, value in vars(self.running.modules[split.module]).items():
            if type(value) is not int:
                continue
            heads = "head" in name and "dim" not in name
            if value == size and (name in HEAD_WIDTHS if last else heads):
                self.nodes.join(self._number_nodes(split.module, name, size), ids)
            elif value == inner and name in INNER_WIDTHS:
                own = self.nodes.of((split.module, Role.of_number(name)), inner).view(
                    before, size, after
                )
                self.nodes.join(own, ids[:, None])

    def _number_nodes(self, module: str, attribute: str, value: int) -> Tensor:
        """The nodes of what a module's own number counts."""
        return self.nodes.of((module, Role.of_number(attribute)), value)

    # --- modules that did not run -------------------------------------------------------------

    def idle(self) -> list[str]:
        """Modules with parameters, of more than one value, none of which was read."""
        read = {*self.nodes.modules(), *(name for name, _ in self.own.uses)}
        return [
            name
            for name, module in self.running.modules.items()
            if name not in read
            and any(p is not None and p.numel() > 1 for p in module._parameters.values())
        ]

    def freeze_what_fits(self, name: str, reason: str) -> None:
        """Channels that this module, which did not run, could read or write: as many as it has."""
        module = self.running.modules[name]
        convolves = isinstance(module, nn.modules.conv._ConvNd)
        for tensor in module._parameters.values():
            shape = () if tensor is None else tensor.shape[:2] if convolves else tensor.shape
            for size in {*shape} - {1}:
                self.nodes.freeze(self.nodes.of_size(size), reason)


def slot_of(owner: Owner, axis: int) -> Slot:
    """Where one axis of a module's own tensor counts."""
    name, module, attribute = owner
    if isinstance(module, nn.Linear) and attribute in ("weight", "bias"):
        return name, (OUT, IN)[axis]
    if isinstance(module, nn.modules.conv._ConvNd) and attribute in ("weight", "bias"):
        written = 1 if module.transposed and attribute == "weight" else 0
        if is_depthwise(module) and axis == 0:
            return name, BOTH
        if module.groups == 1 and axis < 2:
            return name, OUT if axis == written else IN
        if axis == 0 and not module.transposed:
            return name, OUT
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)
    if axis == 0 and isinstance(module, norms):
        return name, BOTH
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return name, BOTH
    return name, Role.of_tensor(attribute, axis)


def along(ids: Tensor, axis: int, rank: int) -> Part:
    """A part that has ``ids`` along one axis."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.view(shape)


def varying(part: Part) -> tuple[int, ...]:
    """The axes along which a squashed part is not constant."""
    return tuple(axis for axis, size in enumerate(part.shape) if size > 1)


def lift(part: Part, rank: int) -> Part:
    """A part of a tensor that is broadcast to ``rank`` axes."""
    return part.reshape([1] * (rank - part.ndim) + list(part.shape))
