"""What users write: percentages, and names of layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from prunekit.support.errors import UsageError

SHOWN = 6


def share_of(text: str) -> float:
    """``90%`` or ``0.9`` as 0.9; not a number where ``text`` is neither."""
    number = text.strip()
    try:
        return float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        return math.nan


def parse_percent(text: str, flag: str) -> float:
    """``1.5%`` as 0.015; from 0 to below 100 %."""
    value = share_of(text)
    if not text.strip().endswith("%") or not 0 <= value < 1:
        raise UsageError(f"cannot read {flag} {text!r}; write a percentage such as 1.5%")
    return value


def parse_share(text: str, flag: str) -> float:
    """``5%`` or ``0.05`` as 0.05; from 0.1 to below 100 %.

    Examples:
        >>> parse_share("5%", "--threshold"), parse_share("0.05", "--threshold")
        (0.05, 0.05)
    """
    value = share_of(text)
    if value >= 1:
        hint = f"; for {text} % write {text}%" if 1 <= value < 100 and "%" not in text else ""
        raise UsageError(f"{flag} {text!r} is {100 * value:g} %, which is too much{hint}")
    if not value >= 0.001:
        raise UsageError(f"cannot read {flag} {text!r}; write 5% or 0.05, at least 0.1%")
    return value


def matching(names: Iterable[str], patterns: Sequence[str], flag: str) -> set[str]:
    """Those of ``names`` that ``patterns`` stand for.

    A pattern is a name, one such as ``layer1.*``, or a module whose layers are all meant. Raises
    UsageError for a pattern that matches nothing.
    """
    known = list(dict.fromkeys(names))
    matched: set[str] = set()
    for pattern in patterns:
        hits = {n for n in known if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not hits:
            shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
            raise UsageError(f"{flag} names {pattern!r}, which matches no layer; layers: {shown}")
        matched |= hits
    return matched


T = TypeVar("T")


def parse_options(kind: type[T], steps: int, options: Mapping[str, object], what: str) -> T:
    """A schedule, a dataclass, from text or values by field name; ``what`` they are called."""
    names = [field.name for field in fields(kind) if field.name != "steps"]  # type: ignore[arg-type]
    for name in options:
        if name not in names:
            raise UsageError(f"unknown {what} {name!r}; known: {', '.join(names)}")
    try:
        return TypeAdapter(kind).validate_python({**options, "steps": steps})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{what} `{first['loc'][0]}`: {first['msg']}") from error
