"""Norms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from prunekit.core.role import BOTH
from prunekit.tracing.calls import Call
from prunekit.tracing.labels import Labels, Part, along, lift, varying
from prunekit.tracing.operators.movement import still
from prunekit.tracing.operators.pointwise import axes_of
from prunekit.tracing.operators.registry import handles


@handles(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm "
    "_native_batch_norm_legit_functional _batch_norm_no_update _batch_norm_with_update "
    "cudnn_batch_norm instance_norm"
)
def batch_norm(labels: Labels, call: Call) -> None:
    """Each channel on its own."""
    x, width = call.x, call.x.shape[1]
    module = labels.running.module
    parts = list(labels.parts(x))
    if isinstance(module, nn.modules.batchnorm._NormBase):
        size = module.num_features
        if size > 1 and width % size == 0:  # an InstanceNorm's samples lie side by side
            ids = labels.nodes.of((labels.running.name, BOTH), size)
            parts.append(along(ids.repeat(width // size), 1, x.ndim))
    for tensor in call.tensors[1:]:
        parts += [along(part.flatten(), 1, x.ndim) for part in labels.parts(tensor)]
    labels.put(call.result, settled(labels, x, parts))


def settled(labels: Labels, x: Tensor, parts: Iterable[Part]) -> list[Part]:
    """``parts`` joined; those along axes on which the input has no channels stay."""
    axes = axes_of(labels.parts(x))
    joined = labels.combine(parts)
    for part in joined:
        if not axes.intersection(varying(part)):
            labels.freeze([part], labels.constant)
    return joined


@handles("native_layer_norm layer_norm")
def layer_norm(labels: Labels, call: Call) -> None:
    """Statistics over channels: exact as long as they are taken over those that are kept."""
    x, shape = call.x, call["normalized_shape"]
    parts = list(labels.parts(x))
    last = x.ndim - 1
    if len(shape) > 1:
        axes = [*range(x.ndim - len(shape), x.ndim)]
        parts = still(labels, parts, axes, "normalises over several axes")
    elif not isinstance(labels.running.module, nn.LayerNorm):
        parts = still(labels, parts, [last], "normalises it without a LayerNorm module")
    elif shape[0] > 1:
        own = along(labels.nodes.of((labels.running.name, BOTH), shape[0]), last, x.ndim)
        if labels.whole_heads and any(last in varying(p) != (last,) for p in parts):
            labels.put(call.result, labels.spared(parts, [own]))  # of each head on its own
            return
        parts.append(own)
    for tensor in (call["weight"], call["bias"]):
        parts += [lift(part, x.ndim) for part in labels.parts(tensor)]
    labels.put(call.result, settled(labels, x, parts))


@handles("native_group_norm group_norm")
def group_norm(labels: Labels, call: Call) -> None:
    """A norm's groups of channels go as a whole."""
    x, channels = call.x, call.x.shape[1]
    groups = call["group"] or call["num_groups"]
    parts = list(labels.parts(x))
    if isinstance(labels.running.module, nn.GroupNorm):
        parts.append(along(labels.nodes.of((labels.running.name, BOTH), channels), 1, x.ndim))
    else:
        parts = still(labels, parts, [1], "normalises it without a GroupNorm module")
    for tensor in (call["weight"], call["bias"]):
        parts += [along(part.flatten(), 1, x.ndim) for part in labels.parts(tensor)]
    joined = settled(labels, x, parts)
    for part in joined:
        if varying(part) == (1,) and groups < channels:
            blocks = part.view(groups, -1)
            labels.nodes.join(blocks, blocks[:, :1])
    labels.put(call.result, joined)
