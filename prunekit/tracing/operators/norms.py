"""Norms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from prunekit.tracing.calls import Call, handles
from prunekit.tracing.follow_dispatch import Flow, Part, along, lift, varying
from prunekit.tracing.operators.movement import still
from prunekit.tracing.operators.pointwise import axes_of


@handles(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm "
    "_native_batch_norm_legit_functional _batch_norm_no_update _batch_norm_with_update "
    "cudnn_batch_norm instance_norm"
)
def batch_norm(flow: Flow, call: Call) -> None:
    """Each channel on its own."""
    x, width = call.x, call.x.shape[1]
    module = flow.running
    found = list(flow.parts(x))
    if isinstance(module, nn.modules.batchnorm._NormBase):
        size = module.num_features
        if size > 1 and width % size == 0:  # an InstanceNorm's samples lie side by side
            ids = flow.nodes.of((flow.module, "both"), size)
            found.append(along(ids.repeat(width // size), 1, x.ndim))
    for tensor in call.tensors[1:]:
        found += [along(part.flatten(), 1, x.ndim) for part in flow.parts(tensor)]
    flow.put(call.result, settled(flow, x, found))


def settled(flow: Flow, x: Tensor, parts: Iterable[Part]) -> list[Part]:
    """``parts`` joined; those along axes on which the input has no channels stay."""
    axes = axes_of(flow.parts(x))
    found = flow.combine(parts)
    for part in found:
        if not axes.intersection(varying(part)):
            flow.freeze([part], flow.constant)
    return found


@handles("native_layer_norm layer_norm")
def layer_norm(flow: Flow, call: Call) -> None:
    """Statistics over channels: exact as long as they are taken over those that are kept."""
    x, shape = call.x, call["normalized_shape"]
    found = list(flow.parts(x))
    last = x.ndim - 1
    if len(shape) > 1:
        axes = [*range(x.ndim - len(shape), x.ndim)]
        found = still(flow, found, axes, "normalises over several axes")
    elif not isinstance(flow.running, nn.LayerNorm):
        found = still(flow, found, [last], "normalises it without a LayerNorm module")
    elif shape[0] > 1:
        found.append(along(flow.nodes.of((flow.module, "both"), shape[0]), last, x.ndim))
    for tensor in (call["weight"], call["bias"]):
        found += [lift(part, x.ndim) for part in flow.parts(tensor)]
    flow.put(call.result, settled(flow, x, found))


@handles("native_group_norm group_norm")
def group_norm(flow: Flow, call: Call) -> None:
    """A norm's groups of channels go as a whole."""
    x, channels = call.x, call.x.shape[1]
    groups = call["group"] or call["num_groups"]
    found = list(flow.parts(x))
    if isinstance(flow.running, nn.GroupNorm):
        found.append(along(flow.nodes.of((flow.module, "both"), channels), 1, x.ndim))
    else:
        found = still(flow, found, [1], "normalises it without a GroupNorm module")
    for tensor in (call["weight"], call["bias"]):
        found += [along(part.flatten(), 1, x.ndim) for part in flow.parts(tensor)]
    joined = settled(flow, x, found)
    for part in joined:
        if varying(part) == (1,) and groups < channels:
            blocks = part.view(groups, -1)
            flow.nodes.join(blocks, blocks[:, :1])
    flow.put(call.result, joined)
