"""The channel graph: which channels go together, and what every layer reads and writes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunekit.core.role import Role
from prunekit.support.errors import UsageError
from prunekit.support.parsing import matching


def fingerprint(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Identity of a model's structure: a hash of its state names and shapes, in order."""
    text = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Member:
    """Where a group's channels live in one module.

    ``index`` has shape (channels of the group, positions per channel): channel ``c`` occupies
    ``index[c]`` along the axis that ``role`` names.
    """

    module: str
    role: Role
    index: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are kept or removed together over all coupled modules."""

    id: str
    size: int
    granularity: int
    min_width: int
    prunable: bool
    members: tuple[Member, ...]
    reason: str = ""
    """Why it is not prunable; empty when it is."""

    @property
    def writers(self) -> tuple[Member, ...]:
        """Where its channels are outputs: of a layer, or along the first axis of a tensor."""
        return tuple(member for member in self.members if member.role.makes_channels)

    def widths(self, granularity: int = 1, min_width: int | None = None) -> tuple[int, ...]:
        """The widths this group may take, ascending; the full width is always one of them."""
        if granularity < 1:
            raise UsageError(f"`granularity` must be at least 1, not {granularity}")
        if not self.prunable:
            return (self.size,)
        step = math.lcm(self.granularity, granularity)
        low = max(1, self.min_width if min_width is None else min_width)
        first = step * math.ceil(low / step)
        return (*range(first, self.size, step), self.size)


@dataclass(frozen=True)
class Span:
    """A run of a layer's channels that belongs to one group; ``repeat`` positions per channel."""

    group: str
    size: int
    repeat: int = 1


@dataclass(frozen=True)
class LayerShape:
    """What a latency depends on besides the widths: a layer's shape without its name.

    Examples:
        >>> shape = LayerShape("conv", (3, 3), (2, 2), (1, 1), in_hw=(56, 56), out_hw=(28, 28))
        >>> print(shape)
        conv 3x3/2 56x56->28x28
    """

    kind: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    in_hw: tuple[int, ...] = ()
    out_hw: tuple[int, ...] = ()
    epilogue: tuple[str, ...] = ()
    further: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """In- and out-sizes of all calls after the first, where they are not all the same."""

    def __str__(self) -> str:
        """Such as ``conv 3x3/2 56x56->28x28 +add +relu``."""
        parts = [self.kind]
        if self.kernel:
            step = f"/{self.stride[0]}" if any(s != 1 for s in self.stride) else ""
            holes = f" dilation {self.dilation[0]}" if any(d != 1 for d in self.dilation) else ""
            parts.append("x".join(map(str, self.kernel)) + step + holes)
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        if self.in_hw:
            parts += [_step(*sizes) for sizes in ((self.in_hw, self.out_hw), *self.further)]
        return " ".join([*parts, *(f"+{name}" for name in self.epilogue)])


def _step(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    sizes = ["x".join(map(str, hw)) for hw in (before, after)]
    return sizes[0] if before == after else "->".join(sizes)


@dataclass(frozen=True)
class Layer:
    """One parametrised layer with everything the runtime does on its output until the next one."""

    name: str
    shape: LayerShape
    in_channels: int
    out_channels: int
    in_spans: tuple[Span, ...]
    out_spans: tuple[Span, ...]
    has_bias: bool = False
    calls: int = 1

    @property
    def kind(self) -> str:
        """``conv``, ``depthwise``, ``linear``, ..."""
        return self.shape.kind

    @property
    def out_group(self) -> str | None:
        """The one group this layer writes, or None when fixed or several."""
        return self.out_spans[0].group if len(self.out_spans) == 1 else None

    def width(self, side: Literal["in", "out"], widths: Mapping[str, int]) -> int:
        """In- or out-width at the given group widths (groups not named keep their size)."""
        spans, full = (
            (self.in_spans, self.in_channels)
            if side == "in"
            else (self.out_spans, self.out_channels)
        )
        return full - sum((s.size - widths.get(s.group, s.size)) * s.repeat for s in spans)

    def macs(self, in_width: int, out_width: int) -> int:
        """Multiply-accumulates of all its calls for one sample."""
        shape = self.shape
        further = shape.further or ((shape.in_hw, shape.out_hw),) * (self.calls - 1)
        sizes = ((shape.in_hw, shape.out_hw), *further)
        positions = sum(math.prod(size[self.kind != "transposed"]) for size in sizes)
        kernel = math.prod(shape.kernel) if shape.kernel else 1
        return self._fan_in(in_width) * kernel * out_width * positions

    def params(self, in_width: int, out_width: int) -> int:
        """Weights and bias, without the norms that follow."""
        kernel = math.prod(self.shape.kernel) if self.shape.kernel else 1
        return out_width * (self._fan_in(in_width) * kernel + int(self.has_bias))

    def _fan_in(self, in_width: int) -> int:
        """Channels that each output reads; groups of a convolution go as a whole."""
        if self.kind == "depthwise":
            return 1
        groups = self.shape.groups
        return in_width if groups == 1 else self.in_channels // groups


@dataclass(frozen=True)
class Side:
    """Positions along one axis of an activation: those of some groups' channels, and fixed ones."""

    fixed: int
    spans: tuple[Span, ...]

    def size(self, widths: Mapping[str, int]) -> int:
        """Positions at the given group widths."""
        return self.fixed + sum(s.repeat * widths.get(s.group, s.size) for s in self.spans)


@dataclass(frozen=True)
class Buffer:
    """An activation: written in step ``first`` of a forward, last read in step ``last``.

    It takes ``bytes`` times the positions on its sides, at the batch that was traced.
    """

    bytes: int
    first: int
    last: int
    sides: tuple[Side, ...] = ()

    def size(self, widths: Mapping[str, int]) -> int:
        """Bytes at the given group widths."""
        return self.bytes * math.prod(side.size(widths) for side in self.sides)


@dataclass(frozen=True)
class Peak:
    """The most bytes that activations take at once, and the step in which they do."""

    bytes: int
    step: int


WEIGHT_BYTES = 4
"""Of one weight in fp32."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Groups and layers of one traced model; ``input_shapes`` are the shapes it was traced with."""

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    fingerprint: str
    input_shapes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = field(default=())
    removable: tuple[str, ...] = ()
    """Residual blocks without which every shape stays as it is."""
    buffers: tuple[Buffer, ...] = ()
    """All activations of a forward, inputs and outputs included."""
    activation_macs: int = 0
    """Multiply-accumulates between activations, as in attention: of no layer, and in no sum."""

    @cached_property
    def by_id(self) -> dict[str, ChannelGroup]:
        """Groups by id."""
        return {group.id: group for group in self.groups}

    def group(self, group_id: str) -> ChannelGroup:
        """The group called ``group_id``; an unknown one lists a few known ones."""
        if group_id not in self.by_id:
            known = ", ".join(list(self.by_id)[:5])
            raise UsageError(f"no channel group {group_id!r} in this model; groups: {known}, ...")
        return self.by_id[group_id]

    def constrained(self, keep: Sequence[str] = (), min_width: float = 0.0) -> ChannelGraph:
        """The same graph with less to prune.

        ``keep`` names layers whose output channels all stay, with every group that these are in: by
        name, by a pattern such as ``layer4.*``, or by a module that holds them. Of each other group
        at least the share ``min_width`` (0 to 1) stays. Raises UsageError for a name that matches
        no layer.
        """
        if not 0 <= min_width < 1:
            raise UsageError(f"`min_width` must be from 0 to below 1, not {min_width}")
        writers = {group.id: {m.module for m in group.writers} for group in self.groups}
        names = [*(layer.name for layer in self.layers), *chain.from_iterable(writers.values())]
        kept = matching(names, keep, "`keep`")

        def constrain(group: ChannelGroup) -> ChannelGroup:
            if not group.prunable:
                return group
            if not kept.isdisjoint(writers[group.id]):
                return replace(group, prunable=False, reason="kept whole, as asked for")
            return replace(group, min_width=max(group.min_width, math.ceil(min_width * group.size)))

        return replace(self, groups=tuple(map(constrain, self.groups)))

    def inside(self, block: str) -> tuple[str, ...]:
        """The prunable groups that lie in a module as a whole."""
        return tuple(
            group.id
            for group in self.groups
            if group.prunable and all(m.module.startswith(f"{block}.") for m in group.members)
        )

    @cached_property
    def droppable(self) -> dict[str, tuple[str, ...]]:
        """Removable blocks that an allocation may leave out, with the groups inside of each.

        Those without another one in them, all of whose layers read or write a group inside: width
        zero of these groups stands for the block being gone.
        """
        inside = {}
        for block in self.removable:
            groups = set(self.inside(block))
            layers = [layer for layer in self.layers if layer.name.startswith(f"{block}.")]
            touched = [
                groups & {span.group for span in (*layer.in_spans, *layer.out_spans)}
                for layer in layers
            ]
            nested = any(other.startswith(f"{block}.") for other in self.removable)
            if groups and layers and all(touched) and not nested:
                inside[block] = tuple(g.id for g in self.groups if g.id in groups)
        return inside

    @property
    def dense_widths(self) -> dict[str, int]:
        """Every group's full width."""
        return {group.id: group.size for group in self.groups}

    def smallest_widths(self, granularity: int) -> dict[str, int]:
        """Every group's least width at a granularity."""
        return {group.id: group.widths(granularity)[0] for group in self.groups}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates of all layers for one sample."""
        return sum(
            layer.macs(layer.width("in", widths), layer.width("out", widths))
            for layer in self.layers
        )

    def peak(self, widths: Mapping[str, int]) -> Peak:
        """When activations take most, in an order of operators as traced, each freed when read.

        Operators on single positions work in place, norms are part of their convolution. A
        runtime's own workspace comes on top.
        """
        steps = max((buffer.last for buffer in self.buffers), default=0)
        change = np.zeros(steps + 2, dtype=np.int64)
        for buffer in self.buffers:
            size = buffer.size(widths)
            change[buffer.first] += size
            change[buffer.last + 1] -= size
        alive = change.cumsum()
        step = int(alive.argmax())
        return Peak(int(alive[step]), step)

    def memory(self, widths: Mapping[str, int]) -> int:
        """Bytes of all weights and of the activations at their peak, in fp32 (see :meth:`peak`)."""
        params = sum(
            layer.params(layer.width("in", widths), layer.width("out", widths))
            for layer in self.layers
        )
        return WEIGHT_BYTES * params + self.peak(widths).bytes

    def prunable_macs_share(self) -> float:
        """The share of MACs in layers that at least one prunable group narrows."""
        prunable = {group.id for group in self.groups if group.prunable}
        total = touched = 0
        for layer in self.layers:
            macs = layer.macs(layer.in_channels, layer.out_channels)
            total += macs
            if any(s.group in prunable for s in (*layer.in_spans, *layer.out_spans)):
                touched += macs
        return touched / total if total else 0.0
