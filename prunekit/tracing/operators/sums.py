"""Operators that mix the positions of some axes: sums, comparisons, pooling."""

from __future__ import annotations

from torch import Tensor

from prunekit.tracing.calls import Call, flat
from prunekit.tracing.labels import Labels, varying
from prunekit.tracing.operators.movement import still
from prunekit.tracing.operators.pointwise import meet
from prunekit.tracing.operators.registry import handles

EXACT = ("sum", "nansum", "linalg_vector_norm")
"""Sums to which a removed channel, being zero, adds nothing."""


@handles(
    "mean sum nansum amax amin max min var std var_mean std_mean norm linalg_vector_norm logsumexp "
    "prod argmax argmin any all cumsum median aminmax cummax"
)
def reduced(labels: Labels, call: Call) -> None:
    """Along other axes than the channels'; a sum over channels is exact, a mean is not."""
    x = call.x
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):  # the maximum of two tensors
        meet(labels, call.tensors, call.result)
        return
    dim = call["dim"]
    axes = [dim] if isinstance(dim, int) else (dim or range(x.ndim))
    axes = [axis % x.ndim for axis in axes]
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    parts = []
    for part in labels.parts(x):
        summed = [axis for axis in varying(part) if axis in axes]
        if summed and call.name in EXACT:
            if len(summed) == len(varying(part)):
                continue
            part = labels.collapse(part, summed)
            if not varying(part):
                continue
        elif summed and labels.whole_heads and len(summed) < len(varying(part)):
            part = labels.collapse(part, summed)  # of each head on its own
            if not varying(part):
                continue
        elif summed:
            labels.freeze([part], f"{labels.where} takes a {call.name} over channels")
            continue
        if not (call["keepdim"] or call.name.startswith("cum")):
            part = part.permute(*kept, *axes).reshape([part.shape[axis] for axis in kept])
        parts.append(part)
    for tensor in flat(call.out):
        labels.put(tensor, parts)


@handles(
    "softmax _softmax log_softmax _log_softmax _safe_softmax sort topk glu cumprod logcumsumexp "
    "argsort kthvalue"
)
def compared(labels: Labels, call: Call) -> None:
    """Each value depends on all others of its axis, which must not be that of channels."""
    x = call.x
    doing = f"compares channels ({call.name.strip('_')})"
    parts = still(labels, labels.parts(x), [call.axis(default=-1)], doing)
    for tensor in flat(call.out):
        if tensor.ndim == x.ndim and all(
            tensor.shape[axis] == x.shape[axis] for part in parts for axis in varying(part)
        ):
            labels.put(tensor, parts)


@handles("""
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa
    upsample_trilinear3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d constant_pad_nd grid_sampler_2d grid_sampler_3d
""")
def spatial(labels: Labels, call: Call) -> None:
    """Neighbours in the picture are mixed, channels are not."""
    x, out = call.x, call.result
    mixed = [axis for axis in range(x.ndim) if x.shape[axis] != out.shape[axis]]
    if call.name != "constant_pad_nd":
        mixed = [*range(2 if x.ndim > 2 else 1, x.ndim)]
    labels.put(out, still(labels, labels.parts(x), mixed, f"mixes its positions ({call.name})"))
    for other in flat(call.args[1:]):
        labels.freeze(labels.parts(other), f"{labels.where} reads it ({call.name})")
