"""Operators that work position by position, and those that make values without channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from prunekit.tracing.calls import BINARY, UNARY, Call
from prunekit.tracing.labels import Labels, Part, lift, varying
from prunekit.tracing.operators.registry import handles


@handles(UNARY + BINARY)
def pointwise(labels: Labels, call: Call) -> None:
    """Positions that meet go together; those that meet values without a channel stay."""
    meet(labels, call.tensors, call.result)


def meet(labels: Labels, tensors: Sequence[Tensor], result: Tensor) -> None:
    """Label ``result``, whose positions come from those of all ``tensors``, which broadcast."""
    rank = result.ndim
    own = [[lift(part, rank) for part in labels.parts(tensor)] for tensor in tensors]
    if labels.whole_heads:
        own = _without_tables(labels, own)
    joined = labels.combine(part for parts in own for part in parts)
    for tensor, parts in zip(tensors, own, strict=True):
        # an expanded axis is one value, whatever size it is expanded to
        sizes = [
            size if step else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        shape = (*[1] * (rank - tensor.ndim), *sizes)
        for part in joined:
            moving = [axis for axis in varying(part) if shape[axis] > 1]
            if moving and not axes_of(parts).intersection(moving):
                labels.freeze([part], labels.constant)
    labels.put(result, joined)


def _without_tables(labels: Labels, own: list[list[Part]]) -> list[list[Part]]:
    """The parts of all tensors, without tables that meet several heads; heads go whole then."""
    every = [part for parts in own for part in parts]
    several = [set(varying(part)) for part in every if len(varying(part)) > 1]
    tables = [
        part
        for part in every
        if any(set(varying(part)) < axes for axes in several) and labels.is_table(part)
    ]
    if not tables:
        return own
    rest = [[part for part in parts if not _among(part, tables)] for parts in own]
    return [labels.spared(parts, tables) for parts in rest]


def _among(part: Part, parts: Iterable[Part]) -> bool:
    """Whether a part is one of ``parts`` itself."""
    return any(part is other for other in parts)


def axes_of(parts: Iterable[Part]) -> set[int]:
    """The axes along which any of these parts varies."""
    return {axis for part in parts for axis in varying(part)}


@handles("copy")
def copied(labels: Labels, call: Call) -> None:
    """Values written into another tensor; into a part of one they cannot be followed."""
    target, source = call.args[:2]
    if target._base is None and labels.parts(target):
        meet(labels, [target, source], target)
        return
    if target._base is not None:
        labels.freeze(
            [*labels.parts(target), *labels.parts(source)],
            f"{labels.where} writes it into part of another tensor",
        )
        return
    labels.put(target, [lift(part, target.ndim) for part in labels.parts(source)])


@handles(
    "new_zeros new_ones new_empty new_full new_empty_strided is_same_size _local_scalar_dense "
    "equal sym_size is_nonzero allclose"
)
def unlabelled(labels: Labels, call: Call) -> None:
    """The result has no channels of what it was made after."""
