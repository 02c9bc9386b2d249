"""Which operators run after (or, behind a concatenation, before) each layer, from one forward."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.tracing.follow_dispatch import Operation

_FREE = (
    *("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "permute", "transpose"),
    *("t", "alias", "clone", "contiguous", "detach", "_to_copy", "lift_fresh", "split"),
    *("split_with_sizes", "unbind", "select", "slice", "empty", "zeros", "ones"),
)
"""Operators that move no data, or none worth a name."""
_NORMS = ("batch_norm",)


def epilogues(operations: Sequence[Operation]) -> dict[str, tuple[str, ...]]:
    """Layer name -> sorted operator names.

    An operator belongs to the layer upstream of it; where several are (an addition), to the one
    with the longest path from the input, which is the one a runtime fuses it into. Operators
    behind a concatenation that lead to one layer only belong to that layer, whose in-width they
    scale with, and carry the prefix ``pre-``.
    """
    depth = _depths(operations)
    found: dict[str, set[str]] = {}
    for node in operations:
        if node.layer:
            found.setdefault(node.layer, set())
            continue
        label = _label(node)
        if label is None:
            continue
        upstream, concat = _nearest(node.inputs, "inputs")
        if concat or node.name == "cat":
            below, _ = _nearest(node.outputs, "outputs")
            names = {n.layer for n in below}
            if len(names) == 1:
                found.setdefault(names.pop(), set()).add(f"pre-{label}")
                continue
        if upstream:
            owner = max(upstream, key=lambda n: depth[id(n)])
            found.setdefault(owner.layer, set()).add(label)
    return {name: tuple(sorted(labels)) for name, labels in found.items()}


def _label(node: Operation) -> str | None:
    name = node.name.rstrip("_")
    if name in _FREE or any(norm in name for norm in _NORMS):
        return None
    for noise in ("_with_indices", "native_", "_for_cpu"):
        name = name.replace(noise, "")
    return name.replace("_", "")


def _nearest(start: Sequence[Operation], onward: str) -> tuple[list[Operation], bool]:
    """The nearest layers from ``start`` on (itself included) along ``inputs`` or ``outputs``.

    Also whether a concatenation lies on the way.
    """
    found, concat, stack, seen = [], False, list(start), set()
    while stack:
        here = stack.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.layer:
            found.append(here)
            continue
        concat = concat or here.name == "cat"
        stack.extend(getattr(here, onward))
    return found, concat


def _depths(operations: Sequence[Operation]) -> dict[int, int]:
    """Layers on the longest path from the input to each operation; they come in order."""
    depth: dict[int, int] = {}
    for node in operations:
        above = max((depth.get(id(n), 0) for n in node.inputs), default=0)
        depth[id(node)] = above + int(bool(node.layer))
    return depth
