"""Operators that work position by position, and those that make values without channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from prunekit.tracing.calls import Call, handles
from prunekit.tracing.follow_dispatch import Flow, Part, lift, varying

UNARY = """
    relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh
    softplus softsign log_sigmoid log_sigmoid_forward threshold abs neg exp expm1 log log2 log10
    log1p sqrt rsqrt square sin cos tan sinh cosh asin acos atan asinh acosh atanh erf erfinv ceil
    floor round trunc frac sign reciprocal clamp clamp_min clamp_max clip logit hardshrink
    softshrink logical_not bitwise_not isnan isinf isfinite nan_to_num positive
    native_dropout dropout bernoulli fill zero
    zeros_like ones_like full_like empty_like rand_like randn_like
    clone contiguous detach alias lift_fresh lift _to_copy to
"""
BINARY = """
    add sub rsub mul div true_divide pow maximum minimum fmax fmin where eq ne lt le gt ge
    logical_and logical_or logical_xor bitwise_and bitwise_or addcmul addcdiv lerp atan2 fmod
    remainder floor_divide masked_fill hypot _prelu_kernel copysign xlogy
"""
IN_PLACE = frozenset((UNARY + BINARY).split())
"""Operators that a runtime lets write over what they read."""


@handles(UNARY + BINARY)
def pointwise(flow: Flow, call: Call) -> None:
    """Positions that meet go together; those that meet values without a channel stay."""
    meet(flow, call.tensors, call.result)


def meet(flow: Flow, tensors: Sequence[Tensor], result: Tensor) -> None:
    """Label ``result``, whose positions come from those of all ``tensors``, which broadcast."""
    rank = result.ndim
    own = [[lift(part, rank) for part in flow.parts(tensor)] for tensor in tensors]
    found = flow.combine(part for parts in own for part in parts)
    for tensor, parts in zip(tensors, own, strict=True):
        # an expanded axis is one value, whatever size it is expanded to
        sizes = [
            size if step else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        shape = (*[1] * (rank - tensor.ndim), *sizes)
        for part in found:
            moving = [axis for axis in varying(part) if shape[axis] > 1]
            if moving and not axes_of(parts).intersection(moving):
                flow.freeze([part], flow.constant)
    flow.put(result, found)


def axes_of(parts: Iterable[Part]) -> set[int]:
    """The axes along which any of these parts varies."""
    return {axis for part in parts for axis in varying(part)}


@handles("copy")
def copied(flow: Flow, call: Call) -> None:
    """Values written into another tensor; into a part of one they cannot be followed."""
    target, source = call.args[:2]
    if target._base is None and flow.parts(target):
        meet(flow, [target, source], target)
        return
    if target._base is not None:
        flow.freeze(
            [*flow.parts(target), *flow.parts(source)],
            f"{flow.where} writes it into part of another tensor",
        )
        return
    flow.put(target, [lift(part, target.ndim) for part in flow.parts(source)])


@handles(
    "new_zeros new_ones new_empty new_full new_empty_strided is_same_size _local_scalar_dense "
    "equal sym_size is_nonzero allclose"
)
def unlabelled(flow: Flow, call: Call) -> None:
    """The result has no channels of what it was made after."""
