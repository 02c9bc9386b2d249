"""The graph of operators of one forward, and which of them run beside each layer.

An operator runs after a layer or, behind a concatenation, before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.tracing.calls import Call, flat
from prunekit.tracing.modules import OwnTensors

_FREE = (
    *("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "permute", "transpose"),
    *("t", "alias", "clone", "contiguous", "detach", "_to_copy", "lift_fresh", "split"),
    *("split_with_sizes", "unbind", "select", "slice", "empty", "zeros", "ones"),
)
"""Operators that move no data, or none worth a name."""
_NORMS = ("batch_norm",)


@dataclass(eq=False)
class Operation:
    """One operator call: its name, the layer whose product it is (if any), and its neighbours."""

    name: str
    layer: str = ""
    inputs: list[Operation] = field(default_factory=list)
    outputs: list[Operation] = field(default_factory=list)


class OperationGraph:
    """The operators of one forward, in order, each with those that made what it took."""

    def __init__(self, own: OwnTensors) -> None:
        self.operations: list[Operation] = []
        self._own = own
        self._made_by: Any = WeakTensorKeyDictionary()
        self._layer_of: Any = WeakTensorKeyDictionary()

    def note(self, call: Call) -> None:
        """One operator; those that only turn a layer's weight belong to the layer."""
        before: list[Operation] = []
        layer, takes_data = "", False
        for tensor in call.tensors:
            weight_of = self._layer_of.get(tensor, "")
            for owner in self._own.owners(tensor):
                if isinstance(owner.module, LAYER_TYPES):
                    weight_of = owner.name
            layer = layer or weight_of
            takes_data = takes_data or not weight_of
            maker = self._made_by.get(tensor)
            if maker is not None and maker not in before:
                before.append(maker)
        if layer and not takes_data:
            for tensor in flat(call.out):
                self._layer_of[tensor] = layer
            return
        operation = Operation(call.name, layer, before)
        for maker in before:
            maker.outputs.append(operation)
        self.operations.append(operation)
        for tensor in flat(call.out):
            self._made_by[tensor] = operation


def epilogues(operations: Sequence[Operation]) -> dict[str, tuple[str, ...]]:
    """Layer name -> sorted operator names.

    An operator belongs to the layer upstream of it; where several are (an addition), to the one
    with the longest path from the input, which is the one a runtime fuses it into. Operators
    behind a concatenation that lead to one layer only belong to that layer, whose in-width they
    scale with, and carry the prefix ``pre-``.
    """
    depth = _depths(operations)
    beside: dict[str, set[str]] = {}
    for node in operations:
        if node.layer:
            beside.setdefault(node.layer, set())
            continue
        label = _label(node)
        if label is None:
            continue
        upstream, concatenated = _nearest_layers(node.inputs, "inputs")
        if concatenated or node.name == "cat":
            downstream, _ = _nearest_layers(node.outputs, "outputs")
            readers = {reader.layer for reader in downstream}
            if len(readers) == 1:
                beside.setdefault(readers.pop(), set()).add(f"pre-{label}")
                continue
        if upstream:
            writer = max(upstream, key=lambda layer: depth[id(layer)])
            beside.setdefault(writer.layer, set()).add(label)
    return {name: tuple(sorted(labels)) for name, labels in beside.items()}


def _label(node: Operation) -> str | None:
    name = node.name.rstrip("_")
    if name in _FREE or any(norm in name for norm in _NORMS):
        return None
    for noise in ("_with_indices", "native_", "_for_cpu"):
        name = name.replace(noise, "")
    return name.replace("_", "")


def _nearest_layers(
    start: Sequence[Operation], onward: Literal["inputs", "outputs"]
) -> tuple[list[Operation], bool]:
    """The nearest layers from ``start`` on (itself included) along ``inputs`` or ``outputs``.

    Also whether a concatenation lies on the way.
    """
    layers, concatenated, stack, seen = [], False, list(start), set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.layer:
            layers.append(node)
            continue
        concatenated = concatenated or node.name == "cat"
        stack.extend(node.inputs if onward == "inputs" else node.outputs)
    return layers, concatenated


def _depths(operations: Sequence[Operation]) -> dict[int, int]:
    """Layers on the longest path from the input to each operation; they come in order."""
    depth: dict[int, int] = {}
    for node in operations:
        above = max((depth.get(id(n), 0) for n in node.inputs), default=0)
        depth[id(node)] = above + int(bool(node.layer))
    return depth
