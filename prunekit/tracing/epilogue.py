"""Which operators run after (or, behind a concatenation, before) each layer, from one forward."""

from __future__ import annotations

import re
from typing import Any

from torch_pruning.ops import OPTYPE

from prunekit.tracing.atoms import Dependencies

_ANCHORS = (OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.LINEAR)
_FREE = ("view", "reshape", "squeeze", "unsqueeze", "alias", "clone", "t", "unsafeview", "expand")
"""Operators that move no data, or none worth a name."""


def epilogues(deps: Dependencies) -> dict[str, tuple[str, ...]]:
    """Layer name -> sorted operator names.

    An operator belongs to the layer upstream of it; where several are (an addition), to the one
    with the longest path from the input, which is the one a runtime fuses it into. Operators
    behind a concatenation that lead to one layer only belong to that layer, whose in-width they
    scale with, and carry the prefix ``pre-``.
    """
    nodes = list(deps.graph.module2node.values())
    depth = _depths(nodes)
    found: dict[str, set[str]] = {}
    for node in nodes:
        if node.type in _ANCHORS:
            found.setdefault(deps.names.get(node.module, ""), set())
            continue
        label = _label(node)
        if label is None:
            continue
        upstream, concat = _nearest(node.inputs, "inputs")
        if concat or node.type == OPTYPE.CONCAT:
            below, _ = _nearest(node.outputs, "outputs")
            if len(below) == 1:
                found.setdefault(deps.names[below.pop().module], set()).add(f"pre-{label}")
                continue
        if upstream:
            owner = max(upstream, key=lambda n: depth[id(n)])
            found.setdefault(deps.names[owner.module], set()).add(label)
    return {name: tuple(sorted(labels)) for name, labels in found.items()}


def _label(node: Any) -> str | None:
    if node.type == OPTYPE.BN:
        return None
    if node.type == OPTYPE.CONCAT:
        return "cat"
    if node.grad_fn is None or not hasattr(node.grad_fn, "name"):
        return None
    name = re.sub(r"Backward\d*$|Withindices", "", node.grad_fn.name().split("::")[-1])
    name = name.replace("WithIndices", "").lower()
    return None if name in _FREE else name


def _nearest(start: list[Any], onward: str) -> tuple[set[Any], bool]:
    """The nearest layers from ``start`` on (itself included) along ``inputs`` or ``outputs``.

    Also whether a concatenation lies on the way.
    """
    found, concat, stack, seen = set(), False, list(start), set()
    while stack:
        here = stack.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.type in _ANCHORS:
            found.add(here)
            continue
        concat = concat or here.type == OPTYPE.CONCAT
        stack.extend(getattr(here, onward))
    return found, concat


def _depths(nodes: list[Any]) -> dict[int, int]:
    """Layers on the longest path from the input to each node."""
    depth: dict[int, int] = {}
    for root in nodes:
        stack = [root]
        while stack:
            here = stack[-1]
            if id(here) in depth:
                stack.pop()
                continue
            waiting = [n for n in here.inputs if id(n) not in depth and n not in stack]
            if waiting:
                stack.extend(waiting)
                continue
            above = max((depth.get(id(n), 0) for n in here.inputs), default=0)
            depth[id(here)] = above + int(here.type in _ANCHORS)
            stack.pop()
    return depth
