"""Whether a network is as sparse as its plan says: counted in its weights, nothing assumed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.core.density import Pattern
from prunekit.core.sparsity import SparsityPlan
from prunekit.support.errors import ModelError


@torch.no_grad()
def verify(model: nn.Module, plan: SparsityPlan) -> None:
    """Raise ModelError naming the first layer with more weights than planned, or off its pattern.

    A kept weight may be zero by chance; one that is not kept is exactly zero.
    """
    pattern = Pattern.parse(plan.pattern)
    modules = dict(model.named_modules())
    for layer in plan.layers:
        weight = getattr(modules.get(layer.name), "weight", None)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != layer.shape:
            raise ModelError(
                f"the sparsity plan has layer {layer.name} of {list(layer.shape)}, which "
                f"{type(model).__name__} lacks"
            )
        if layer.dense:
            continue
        nonzero = int(torch.count_nonzero(weight))
        if nonzero > layer.kept:
            raise ModelError(
                f"layer {layer.name} has {nonzero} weights that are not zero, "
                f"its plan {layer.kept}; save the network as the sparse training "
                "left it (while IEE explores, its `active`)"
            )
        if not fits(weight != 0, pattern):
            raise ModelError(f"layer {layer.name} breaks its pattern {pattern}")


def top_of_blocks(scores: Tensor, pattern: Pattern) -> Tensor:
    """The ``n`` highest of every ``m`` in a row along axis 1, as booleans of the same shape."""
    blocks = _blocks(scores, pattern)
    order = blocks.sort(dim=1, descending=True, stable=True).indices[:, : pattern.n]
    chosen = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, order, True)
    return _from_blocks(chosen, scores)


def blocks_with(mask: Tensor, pattern: Pattern) -> Tensor:
    """All elements of the blocks of ``m`` along axis 1 in which any is set."""
    blocks = _blocks(mask, pattern)
    return _from_blocks(blocks.any(dim=1, keepdim=True).expand_as(blocks), mask)


def _blocks(values: Tensor, pattern: Pattern) -> Tensor:
    """The ``m`` in a row along axis 1, shape (blocks, m)."""
    return values.movedim(1, -1).reshape(-1, pattern.m)


def _from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """Undoes :func:`_blocks`, to the shape of ``like``."""
    return blocks.reshape(like.movedim(1, -1).shape).movedim(-1, 1).contiguous()


def fits(mask: Tensor, pattern: Pattern) -> bool:
    """Whether each ``m`` in a row along axis 1 hold at most ``n`` that are set."""
    if not pattern.structured:
        return True
    return bool((_blocks(mask.bool(), pattern).sum(dim=1) <= pattern.n).all())
