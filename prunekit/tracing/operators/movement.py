"""Operators that move values, or choose some of them, and change none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunekit.tracing.calls import Call, flat, handles
from prunekit.tracing.follow_dispatch import Flow, Part, Split, varying
from prunekit.tracing.operators.pointwise import axes_of, meet


def moved(flow: Flow, tensor: Tensor, move: Callable[[Tensor], Tensor]) -> list[Part]:
    """The labels of ``tensor`` after a move of its values."""
    there = (flow.expanded(part, tensor) for part in flow.parts(tensor))
    return [move(part) for part in there if part is not None]


def still(flow: Flow, parts: Sequence[Part], axes: Sequence[int], doing: str) -> list[Part]:
    """Freeze parts that vary along ``axes``; those that do not."""
    free = []
    for part in parts:
        if set(axes) & set(varying(part)):
            flow.freeze([part], f"{flow.where} {doing}")
        else:
            free.append(part)
    return free


@handles("view _unsafe_view reshape _reshape_alias _reshape_copy view_copy")
def reshaped(flow: Flow, call: Call) -> None:
    """An axis that is split keeps its channels apart until it is known which way they go."""
    out = call.result
    parts = [flow.squash(part) for part in moved(flow, call.x, lambda t: t.reshape(out.shape))]
    for part in parts:
        axes = varying(part)
        if len(axes) > 1:
            flow.splits.append(Split(part, axes, tuple(out.shape), flow.module))
    flow.put(out, parts)


@handles(
    "permute transpose t squeeze unsqueeze expand swapaxes movedim numpy_T diagonal "
    "pixel_shuffle pixel_unshuffle channel_shuffle"
)
def rearranged(flow: Flow, call: Call) -> None:
    """Positions change places, no more."""
    flow.put(call.out, moved(flow, call.x, call.on))


@handles("as_strided")
def restrided(flow: Flow, call: Call) -> None:
    """Fine where it only says anew what the shape is."""
    out = call.result
    if out.shape == call.x.shape and out.storage_offset() == call.x.storage_offset():
        flow.put(out, flow.parts(call.x))
    else:
        picked(flow, call)


@handles("repeat tile repeat_interleave")
def repeated(flow: Flow, call: Call) -> None:
    """Copies of a channel go with it, where the axis of channels is not repeated itself."""
    x, out = call.x, call.result
    more = out.ndim - x.ndim
    for part in flow.parts(x):
        if any(out.shape[axis + more] != x.shape[axis] for axis in varying(part)):
            flow.freeze([part], f"{flow.where} repeats it")
    flow.put(out, moved(flow, x, call.on))


@handles("roll flip")
def shifted(flow: Flow, call: Call) -> None:
    """Along the axis of channels their order would matter."""
    axes = [axis % call.x.ndim for axis in call["dims"]] or [*range(call.x.ndim)]
    still(flow, flow.parts(call.x), axes, "moves channels by number")
    flow.put(call.out, flow.parts(call.x))


@handles(
    "split split_with_sizes unbind chunk tensor_split split_copy unsafe_split unsafe_chunk "
    "unsafe_split_with_sizes"
)
def pieces(flow: Flow, call: Call) -> None:
    """Pieces of an axis of channels stay as large as each other: they lose the same positions."""
    x, axis, unbound = call.x, call.axis(), call.name == "unbind"
    sizes = [1 if unbound else piece.shape[axis] for piece in call.out]
    every: list[list[Part]] = [[] for _ in sizes]
    for part in flow.parts(x):
        if axis in varying(part) and len(sizes) > 1:
            _cut_evenly(flow, part, axis, sizes, ties=not unbound)
        there = flow.expanded(part, x)
        if there is not None:
            for parts, piece in zip(every, torch.split(there, sizes, dim=axis), strict=True):
                parts.append(piece.squeeze(axis) if unbound else piece)
    for tensor, parts in zip(call.out, every, strict=True):
        flow.put(tensor, parts)


def _cut_evenly(flow: Flow, part: Part, axis: int, sizes: Sequence[int], *, ties: bool) -> None:
    if len(set(sizes)) > 1:
        flow.freeze([part], f"{flow.where} splits it unevenly")
        return
    first = _join_pieces(flow, part, axis, sizes[0])
    if ties and varying(part) == (axis,):
        flow.tie_number(part.flatten())
        flow.tie_number(first.flatten())


def _join_pieces(flow: Flow, part: Part, axis: int, size: int) -> Part:
    """Let pieces of ``size`` go together, position by position; the first of them."""
    pieces = torch.stack(torch.split(part, size, dim=axis))
    if flow.whole_heads:
        flow.collapse(pieces, [0])
    else:  # queries are told from keys until then
        flow.pieces.append(pieces)
    return pieces[0]


@handles("slice narrow slice_copy")
def sliced(flow: Flow, call: Call) -> None:
    """A slice of the axis of channels is one of several equal pieces, or freezes them."""
    x, axis, size = call.x, call.axis(), call.result.shape[call.axis()]
    full, first = x.shape[axis], call["start"] or 0
    start = max(0, first + full if first < 0 else first)
    even = call["step"] in (None, 1) and size and not full % size and not start % size
    for part in flow.parts(x):
        if axis not in varying(part) or size == full:
            continue
        if even:
            _join_pieces(flow, part, axis, size)
        else:
            flow.freeze([part], f"{flow.where} takes a slice of it")
    flow.put(call.out, moved(flow, x, call.on))


@handles("select select_copy")
def selected(flow: Flow, call: Call) -> None:
    """One position of an axis: along the axis of channels it stands for all."""
    axis = call.axis()
    parts = []
    for part in flow.parts(call.x):
        if axis in varying(part):
            part = flow.collapse(part, [axis])
            if not varying(part):
                flow.freeze([part], f"{flow.where} takes one channel by number")
        parts.append(part.narrow(axis, 0, 1).squeeze(axis))
    flow.put(call.out, parts)


@handles("index _unsafe_index index_select gather")
def looked_up(flow: Flow, call: Call) -> None:
    """Positions chosen by a tensor: fine on other axes than that of channels."""
    x, name = call.x, call.name
    if "index" in name and name != "index_select":
        indices = call["indices"]
        if any(i is not None and i.dtype == torch.bool for i in indices):
            picked(flow, call)
            return
        chosen = [axis for axis, index in enumerate(indices) if index is not None]
    else:
        chosen = [call.axis()]
    free = still(flow, flow.parts(x), chosen, "picks channels by number")
    if name == "gather":
        out = call.result
        for part in free:
            if any(out.shape[axis] != x.shape[axis] for axis in varying(part)):
                flow.freeze([part], f"{flow.where} gathers some of it")
        flow.put(out, free)
    else:
        there = (flow.expanded(part, x) for part in free)
        flow.put(call.out, [call.on(part) for part in there if part is not None])
    others = [part for tensor in flat(call.args[1:]) for part in flow.parts(tensor)]
    flow.freeze(others, f"{flow.where} chooses positions by it")


@handles("index_put")
def put_at(flow: Flow, call: Call) -> None:
    """One number where a mask of all positions says so; others are picked."""
    masks, value = call["indices"], call["values"]
    plain = len(masks) == 1 and masks[0] is not None and masks[0].dtype == torch.bool
    if plain and masks[0].shape == call.x.shape and value.numel() == 1 and not flow.parts(value):
        meet(flow, [call.x, masks[0]], call.result)
        return
    picked(flow, call)


@handles("take_along_dim index_copy scatter masked_select unfold nonzero")
def picked(flow: Flow, call: Call) -> None:
    """Positions are chosen in a way that is not followed."""
    parts = [part for tensor in call.tensors for part in flow.parts(tensor)]
    flow.freeze(parts, f"{flow.where} picks positions of it ({call.name})")


@handles("cat concat stack")
def concatenated(flow: Flow, call: Call) -> None:
    """Channels side by side; along the other axes channels that line up go together."""
    out, stacked = call.result, call.name == "stack"
    axis = call.axis(out.ndim)
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    own = [[p.unsqueeze(axis) if stacked else p for p in flow.parts(t)] for t in tensors]
    sizes = [1 if stacked else tensor.shape[axis] for tensor in tensors]
    side = [[part for part in parts if axis in varying(part)] for parts in own]
    rest = flow.combine(p for parts in own for p in parts if axis not in varying(p))
    for parts in own:
        for part in rest:
            if not axes_of(parts).intersection(varying(part)):
                flow.freeze([part], flow.constant)
    found = list(rest)
    if any(side):
        shapes = [part.shape for parts in side for part in parts]
        shape = [max(sizes_) for sizes_ in zip(*shapes, strict=True)]
        blocks = []
        for parts, size in zip(side, sizes, strict=True):
            block = parts[0] if parts else torch.zeros((1,) * out.ndim, dtype=torch.int64)
            blocks.append(block.expand(*shape[:axis], size, *shape[axis + 1 :]))
        found.append(torch.cat(blocks, dim=axis))
    flow.put(out, found)
