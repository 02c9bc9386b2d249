"""What an allocation may cost: ``50%``, ``12.5ms``, ``2x``, ``macs=40%``, ``memory=8MiB``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

from prunekit.support.errors import UsageError

Kind = Literal["latency", "macs", "params", "memory"]
_KINDS: tuple[Kind, ...] = ("latency", "macs", "params", "memory")
_FORM = re.compile(
    r"(?:(\w+)\s*=)?\s*([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)\s*(%|ms|us|s|x|[kmg]|[kmg]?i?b)?", re.I
)
_TIMES = {"ms": 1.0, "us": 1e-3, "s": 1e3}
_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "": 1.0}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS: dict[Kind, tuple[dict[str, float], str]] = {
    "latency": (_TIMES, "50%, 12.5ms or 2x"),
    "macs": (_COUNTS, "40%, 2x or a count such as 1.5M"),
    "params": (_COUNTS, "40%, 2x or a count such as 1.5M"),
    "memory": (_BYTES, "40%, 2x or a size such as 8MiB"),
}
"""The units of each kind, and what to write instead of a wrong one."""


@dataclass(frozen=True)
class Budget:
    """``value`` is a fraction of the dense cost when ``relative``, else ms, a count or bytes.

    Examples:
        >>> Budget.parse("2x").limit(dense=10.0)
        5.0
        >>> Budget.parse("macs=1.5M").limit(dense=4e6)
        1500000.0
    """

    kind: Kind
    value: float
    relative: bool
    text: str = ""

    @classmethod
    def parse(cls, text: str, kind: Kind = "latency") -> Budget:
        """Read a budget; ``kind`` is what a text without ``kind=`` means."""
        match = _FORM.fullmatch(text.strip())
        if not match:
            raise UsageError(f"cannot read budget {text!r}; write 50%, 12.5ms, 2x or macs=40%")
        name, unit = (match[1] or kind).lower(), (match[3] or "").lower()
        number = float(match[2])
        if name not in _KINDS:
            raise UsageError(
                f"unknown budget kind {name!r} in {text!r}; known: {', '.join(_KINDS)}"
            )
        kind = cast(Kind, name)
        if not number > 0 or not math.isfinite(number):
            raise UsageError(f"budget {text!r} must be above zero")
        if unit == "%":
            value, relative = number / 100, True
        elif unit == "x":
            value, relative = 1 / number, True
        else:
            scale, hint = _UNITS[kind]
            if unit not in scale:
                raise UsageError(f"budget {text!r} has no usable unit for {kind}; write {hint}")
            value, relative = number * scale[unit], False
        if relative and value > 1:
            raise UsageError(f"budget {text!r} is above the dense cost; nothing to prune")
        return cls(kind, value, relative, text.strip())

    @classmethod
    def share(cls, ratio: float, kind: Kind = "latency") -> Budget:
        """A share of the dense cost."""
        return cls(kind, ratio, relative=True, text=f"{ratio:.1%}")

    def limit(self, dense: float) -> float:
        """The limit in the unit of ``dense`` (milliseconds, a count or bytes)."""
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        return self.text or f"{self.kind}={self.value:g}"
