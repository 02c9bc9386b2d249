"""What an allocation may cost: ``latency=50%``, ``12.5ms``, ``2x``, ``macs=40%``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

from prunekit.errors import UsageError

Kind = Literal["latency", "macs", "params"]
_KINDS: tuple[Kind, ...] = ("latency", "macs", "params")
_FORM = re.compile(r"(?:(\w+)\s*=)?\s*([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)\s*(%|ms|us|s|x|[kmg])?", re.I)
_SCALE = {"ms": 1.0, "us": 1e-3, "s": 1e3, "k": 1e3, "m": 1e6, "g": 1e9, "": 1.0}


@dataclass(frozen=True)
class Budget:
    """``value`` is a fraction of the dense cost when ``relative``, else milliseconds or a count."""

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
        elif (kind == "latency") != (unit in ("ms", "us", "s")):
            hint = "50%, 12.5ms or 2x" if kind == "latency" else "40%, 2x or a count such as 1.5M"
            raise UsageError(f"budget {text!r} has no usable unit for {kind}; write {hint}")
        else:
            value, relative = number * _SCALE[unit], False
        if relative and value > 1:
            raise UsageError(f"budget {text!r} is above the dense cost; nothing to prune")
        return cls(kind, value, relative, text.strip())

    def limit(self, dense: float) -> float:
        """The limit in the unit of ``dense`` (milliseconds or a count)."""
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        return self.text or f"{self.kind}={self.value:g}"
