"""Operator calls as handlers and observers see them, and families of operators by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

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


def operator_name(func: Any) -> str:
    """Without namespace and overload, such as ``add_``."""
    return str(func.name()).split("::")[-1].split(".")[0]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an aten operator, with its arguments by the names of its schema."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Without namespace and overload, such as ``add_``."""
        return operator_name(self.func)

    @cached_property
    def named(self) -> dict[str, Any]:
        """All arguments by name, defaults included."""
        schema = self.func._schema.arguments
        defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
        given = {a.name: value for a, value in zip(schema, self.args, strict=False)}
        return defaults | given | self.kwargs

    def __getitem__(self, name: str) -> Any:
        return self.named.get(name)

    @property
    def x(self) -> Tensor:
        """The first argument."""
        first: Tensor = self.args[0]
        return first

    @property
    def result(self) -> Tensor:
        """The first tensor that came out."""
        return flat(self.out)[0]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that went in."""
        return flat((self.args, self.kwargs))

    def on(self, tensor: Tensor) -> Any:
        """The same call with another first argument."""
        return self.func(tensor, *self.args[1:], **self.kwargs)

    def axis(self, rank: int | None = None, default: int = 0) -> int:
        """The argument ``dim``, counted from the front."""
        dim = self["dim"]
        return int(default if dim is None else dim) % (rank or self.x.ndim)


def flat(value: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in flat(item)]
    return []
