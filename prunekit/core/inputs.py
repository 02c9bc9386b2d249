"""What a network takes, as it is written: ``image=1x3x224x224``, ``ids=1x16:int64<30522``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunekit.support.errors import UsageError

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
"""Types that a tensor may have, beside ``bool``."""
_ITEM = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)"
    r"(?::(?P<dtype>\w+))?(?:<(?P<below>[\d.]+)|=(?P<value>-?[\d.]+))?"
)
_PLAIN, _NAMED = "1x3x224x224", "a=1x3x24x24,b=1x3x24x24 or ids=1x16:int64<30522,mask=1x16:int64=1"


@dataclass(frozen=True)
class InputSpec:
    """One tensor: its shape, batch first, and what is in it.

    Numbers are from 0 to ``below``, or all ``value``; without either they are normal noise, and
    zeros and ones where they are whole.
    """

    shape: tuple[int, ...]
    name: str | None = None
    dtype: str = "float32"
    below: float | None = None
    value: float | None = None

    @property
    def is_floating(self) -> bool:
        """Whether it has fractions."""
        return "float" in self.dtype

    def __str__(self) -> str:
        name = f"{self.name}=" if self.name else ""
        kind = "" if self.dtype == "float32" else f":{self.dtype}"
        below = "" if self.below is None else f"<{self.below:g}"
        value = "" if self.value is None else f"={self.value:g}"
        return f"{name}{'x'.join(map(str, self.shape))}{kind}{below}{value}"


def parse_inputs(text: str) -> tuple[InputSpec, ...]:
    """Tensors, divided by commas; all of several have a name or none has one.

    Examples:
        >>> [str(one) for one in parse_inputs("ids=1x16:int64<100, mask=1x16:int64=1")]
        ['ids=1x16:int64<100', 'mask=1x16:int64=1']
    """
    specs = tuple(_parse(part.strip(), text) for part in text.split(","))
    names = [spec.name for spec in specs]
    if len(specs) > 1 and len({name is None for name in names}) > 1:
        raise UsageError(f"--input {text!r}: name all of the tensors or none")
    doubled = next((name for name in names if name and names.count(name) > 1), None)
    if doubled:
        raise UsageError(f"--input {text!r} has two tensors called {doubled}")
    return specs


def _parse(part: str, text: str) -> InputSpec:
    match = _ITEM.fullmatch(part)
    shape = tuple(map(int, match["shape"].split("x"))) if match else ()
    if match is None or len(shape) < 1 or min(shape) < 1 or (len(shape) < 2 and not match["dtype"]):
        example = _NAMED if {*text} & {*"=:<"} else _PLAIN
        raise UsageError(f"cannot read input shape {text!r}; write for example {example}")
    dtype = {"int": "int64", "float": "float32", "long": "int64"}.get(
        match["dtype"], match["dtype"] or "float32"
    )
    if dtype not in (*DTYPES, "bool"):
        raise UsageError(
            f"--input {text!r}: unknown type {dtype!r}; types: {', '.join((*DTYPES, 'bool'))}"
        )
    below, value = (None if match[key] is None else float(match[key]) for key in ("below", "value"))
    if below is not None and not below > 0:
        raise UsageError(f"--input {text!r}: numbers below {below:g} are none; give a larger one")
    return InputSpec(shape, match["name"], dtype, below, value)


def format_inputs(specs: Sequence[InputSpec]) -> str:
    """As :func:`parse_inputs` reads it."""
    return ",".join(map(str, specs))


def with_batch(text: str, batch: int) -> str:
    """The same tensors at another batch."""
    specs = parse_inputs(text)
    return format_inputs([replace(spec, shape=(batch, *spec.shape[1:])) for spec in specs])
