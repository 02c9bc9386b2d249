"""Whether a network is as sparse as its plan says: counted in its weights, nothing assumed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.density import Pattern
from prunekit.errors import ModelError
from prunekit.sparsify.weights.choose import fits
from prunekit.sparsity import SparsityPlan


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
        there = int(torch.count_nonzero(weight))
        if there > layer.kept:
            raise ModelError(
                f"layer {layer.name} has {there} weights that are not zero, its plan {layer.kept}; "
                "save the network as the sparse training left it (while IEE explores, its `active`)"
            )
        if not fits(weight != 0, pattern):
            raise ModelError(f"layer {layer.name} breaks its pattern {pattern}")
