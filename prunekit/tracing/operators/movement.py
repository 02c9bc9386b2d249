"""Operators that move values, or choose some of them, and change none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunekit.tracing.calls import Call, flat
from prunekit.tracing.labels import Labels, Part, Split, varying
from prunekit.tracing.operators.pointwise import axes_of, meet
from prunekit.tracing.operators.registry import handles


def moved(labels: Labels, tensor: Tensor, move: Callable[[Tensor], Tensor]) -> list[Part]:
    """The labels of ``tensor`` after a move of its values."""
    whole = (labels.expanded(part, tensor) for part in labels.parts(tensor))
    return [move(part) for part in whole if part is not None]


def still(labels: Labels, parts: Sequence[Part], axes: Sequence[int], doing: str) -> list[Part]:
    """Freeze parts that vary along ``axes``; those that do not. Heads go as a whole instead."""
    free = []
    for part in parts:
        along_axes = set(axes) & set(varying(part))
        if along_axes and labels.whole_heads and along_axes < set(varying(part)):
            part = labels.collapse(part, along_axes)
        if set(axes) & set(varying(part)):
            labels.freeze([part], f"{labels.where} {doing}")
        else:
            free.append(part)
    return free


@handles("view _unsafe_view reshape _reshape_alias _reshape_copy view_copy")
def reshaped(labels: Labels, call: Call) -> None:
    """An axis that is split keeps its channels apart until it is known which way they go."""
    out = call.result
    parts = [labels.squash(part) for part in moved(labels, call.x, lambda t: t.reshape(out.shape))]
    for part in parts:
        axes = varying(part)
        if len(axes) > 1:
            labels.splits.append(Split(part, axes, tuple(out.shape), labels.running.name))
    labels.put(out, parts)


@handles(
    "permute transpose t squeeze unsqueeze expand swapaxes movedim numpy_T diagonal "
    "pixel_shuffle pixel_unshuffle channel_shuffle"
)
def rearranged(labels: Labels, call: Call) -> None:
    """Positions change places, no more."""
    labels.put(call.out, moved(labels, call.x, call.on))


@handles("as_strided")
def restrided(labels: Labels, call: Call) -> None:
    """Fine where it only says anew what the shape is."""
    out = call.result
    if out.shape == call.x.shape and out.storage_offset() == call.x.storage_offset():
        labels.put(out, labels.parts(call.x))
    else:
        picked(labels, call)


@handles("repeat tile repeat_interleave")
def repeated(labels: Labels, call: Call) -> None:
    """Copies of a channel go with it, where the axis of channels is not repeated itself."""
    x, out = call.x, call.result
    more = out.ndim - x.ndim
    for part in labels.parts(x):
        longer = [axis for axis in varying(part) if out.shape[axis + more] != x.shape[axis]]
        if longer and not (call.name == "repeat_interleave" and isinstance(call["repeats"], int)):
            labels.freeze([part], f"{labels.where} repeats it")
    labels.put(out, moved(labels, x, call.on))


@handles("roll flip")
def shifted(labels: Labels, call: Call) -> None:
    """Along the axis of channels their order would matter."""
    axes = [axis % call.x.ndim for axis in call["dims"]] or [*range(call.x.ndim)]
    still(labels, labels.parts(call.x), axes, "moves channels by number")
    labels.put(call.out, labels.parts(call.x))


@handles(
    "split split_with_sizes unbind chunk tensor_split split_copy unsafe_split unsafe_chunk "
    "unsafe_split_with_sizes"
)
def pieces(labels: Labels, call: Call) -> None:
    """Pieces of an axis of channels stay as large as each other: they lose the same positions."""
    x, axis, unbound = call.x, call.axis(), call.name == "unbind"
    sizes = [1 if unbound else piece.shape[axis] for piece in call.out]
    every: list[list[Part]] = [[] for _ in sizes]
    for part in labels.parts(x):
        if axis in varying(part) and len(sizes) > 1:
            _cut_evenly(labels, part, axis, sizes, ties=not unbound)
        whole = labels.expanded(part, x)
        if whole is not None:
            for parts, piece in zip(every, torch.split(whole, sizes, dim=axis), strict=True):
                parts.append(piece.squeeze(axis) if unbound else piece)
    for tensor, parts in zip(call.out, every, strict=True):
        labels.put(tensor, parts)


def _cut_evenly(labels: Labels, part: Part, axis: int, sizes: Sequence[int], *, ties: bool) -> None:
    if len(set(sizes)) > 1:
        labels.freeze([part], f"{labels.where} splits it unevenly")
        return
    first = _join_pieces(labels, part, axis, sizes[0])
    if ties and varying(part) == (axis,):
        labels.tie_number(part.flatten())
        labels.tie_number(first.flatten())


def _join_pieces(labels: Labels, part: Part, axis: int, size: int) -> Part:
    """Let pieces of ``size`` go together, position by position; the first of them."""
    pieces = torch.stack(torch.split(part, size, dim=axis))
    if labels.whole_heads:
        labels.collapse(pieces, [0])
    else:  # queries are told from keys until then
        labels.pieces.append(pieces)
    return pieces[0]


@handles("slice narrow slice_copy")
def sliced(labels: Labels, call: Call) -> None:
    """A slice of the axis of channels is one of several equal pieces, or freezes them."""
    x, axis, size = call.x, call.axis(), call.result.shape[call.axis()]
    full, first = x.shape[axis], call["start"] or 0
    start = max(0, first + full if first < 0 else first)
    even = call["step"] in (None, 1) and size and not full % size and not start % size
    for part in labels.parts(x):
        if axis not in varying(part) or size == full:
            continue
        if even:
            _join_pieces(labels, part, axis, size)
        elif labels.whole_heads and len(varying(part)) > 1:
            labels.collapse(part, [axis])
        else:
            labels.freeze([part], f"{labels.where} takes a slice of it")
    labels.put(call.out, moved(labels, x, call.on))


@handles("select select_copy")
def selected(labels: Labels, call: Call) -> None:
    """One position of an axis: along the axis of channels it stands for all."""
    axis = call.axis()
    parts = []
    for part in labels.parts(call.x):
        if axis in varying(part):
            part = labels.collapse(part, [axis])
            if not varying(part):
                labels.freeze([part], f"{labels.where} takes one channel by number")
        parts.append(part.narrow(axis, 0, 1).squeeze(axis))
    labels.put(call.out, parts)


@handles("index _unsafe_index index_select gather")
def looked_up(labels: Labels, call: Call) -> None:
    """Positions chosen by a tensor: fine on other axes than that of channels."""
    x, name = call.x, call.name
    if "index" in name and name != "index_select":
        indices = call["indices"]
        if any(i is not None and i.dtype == torch.bool for i in indices):
            picked(labels, call)
            return
        chosen = [axis for axis, index in enumerate(indices) if index is not None]
    else:
        chosen = [call.axis()]
    free = still(labels, labels.parts(x), chosen, "picks channels by number")
    if name == "gather":
        out = call.result
        for part in free:
            if any(out.shape[axis] != x.shape[axis] for axis in varying(part)):
                labels.freeze([part], f"{labels.where} gathers some of it")
        labels.put(out, free)
    else:
        whole = (labels.expanded(part, x) for part in free)
        labels.put(call.out, [call.on(part) for part in whole if part is not None])
    others = [part for tensor in flat(call.args[1:]) for part in labels.parts(tensor)]
    labels.freeze(others, f"{labels.where} chooses positions by it")


@handles("index_put")
def put_at(labels: Labels, call: Call) -> None:
    """One number where a mask of all positions says so; others are picked."""
    masks, value = call["indices"], call["values"]
    plain = len(masks) == 1 and masks[0] is not None and masks[0].dtype == torch.bool
    if plain and masks[0].shape == call.x.shape and value.numel() == 1 and not labels.parts(value):
        meet(labels, [call.x, masks[0]], call.result)
        return
    picked(labels, call)


@handles("take_along_dim index_copy scatter masked_select unfold nonzero")
def picked(labels: Labels, call: Call) -> None:
    """Positions are chosen in a way that is not followed."""
    parts = [part for tensor in call.tensors for part in labels.parts(tensor)]
    labels.freeze(parts, f"{labels.where} picks positions of it ({call.name})")


@handles("cat concat stack")
def concatenated(labels: Labels, call: Call) -> None:
    """Channels side by side; along the other axes channels that line up go together."""
    out, stacked = call.result, call.name == "stack"
    axis = call.axis(out.ndim)
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    own = [_side_by_side(labels, t, axis, stacked=stacked) for t in tensors]
    sizes = [1 if stacked else tensor.shape[axis] for tensor in tensors]
    if labels.whole_heads and not all(axis in axes_of(parts) for parts in own):
        own = [_whole_along(labels, parts, axis) for parts in own]
    side = [[part for part in parts if axis in varying(part)] for parts in own]
    rest = labels.combine(p for parts in own for p in parts if axis not in varying(p))
    for parts in own:
        for part in rest:
            if not axes_of(parts).intersection(varying(part)):
                labels.freeze([part], labels.constant)
    joined = list(rest)
    if any(side):
        shapes = [part.shape for parts in side for part in parts]
        shape = [max(sizes_) for sizes_ in zip(*shapes, strict=True)]
        blocks = []
        for parts, size in zip(side, sizes, strict=True):
            block = parts[0] if parts else torch.zeros((1,) * out.ndim, dtype=torch.int64)
            blocks.append(block.expand(*shape[:axis], size, *shape[axis + 1 :]))
        joined.append(torch.cat(blocks, dim=axis))
    labels.put(out, joined)


def _side_by_side(labels: Labels, tensor: Tensor, axis: int, *, stacked: bool) -> list[Part]:
    """A tensor's labels as they are by now, with the axis along which it is stacked."""
    parts = [labels.squash(part) for part in labels.parts(tensor)]
    return [part.unsqueeze(axis) for part in parts] if stacked else parts


def _whole_along(labels: Labels, parts: Sequence[Part], axis: int) -> list[Part]:
    """Heads as a whole where they lie beside tensors without channels along ``axis``."""
    several = [axis in varying(part) and len(varying(part)) > 1 for part in parts]
    return [
        labels.collapse(part, [axis]) if heads else part
        for part, heads in zip(parts, several, strict=True)
    ]
