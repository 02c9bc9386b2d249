"""Older operators: an ONNX file of opset 18, rewritten for runtimes that stopped earlier.

PyTorch writes opset 18 and newer, and ONNX's own converter refuses most ways down. Here an operator
that is the same in both versions stays, one with another form is rewritten, and any other is
refused by name. The file is checked and run afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from prunekit.support.errors import ModelError

_HARMLESS: dict[str, Any] = {
    "noop_with_empty_axes": 0,
    "allowzero": 0,
    "antialias": 0,
    "keep_aspect_ratio_policy": b"stretch",
    "saturate": 1,
    "training_mode": 0,
    "reduction": b"none",
    "start": 0,
    "num_outputs": None,
}
"""Attributes of newer operators, with the value that says what older ones do anyway."""
_AXES_FROM = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13, "Split": 13}
"""Operators whose axes (or sizes) became an input, and when; other sums over axes in opset 18."""


def lower_opset(model: ModelProto, opset: int) -> ModelProto:
    """``model`` with operators of the version ``opset``; ModelError names one that has no such."""
    lowered = _Lowering(model, opset).run()
    try:
        onnx.checker.check_model(lowered)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"the network cannot be written in opset {opset}: {reason}") from error
    return lowered


class _Lowering:
    """One pass over a graph; ``nodes`` are those written so far."""

    def __init__(self, model: ModelProto, opset: int) -> None:
        self.model, self.opset = ModelProto(), opset
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.constants |= {
            node.output[0]: numpy_helper.to_array(item.t)
            for node in graph.node
            if node.op_type == "Constant"
            for item in node.attribute
            if item.name == "value"
        }
        values = (*graph.input, *graph.value_info, *graph.output)
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
        self.nodes: list[NodeProto] = []

    def run(self) -> ModelProto:
        """The whole model."""
        for node in self.model.graph.node:
            if node.domain not in ("", "ai.onnx"):
                self.nodes.append(node)
            else:
                self._lower(node)
        graph = self.model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | {o.name for o in graph.output}
        for tensor in [t for t in graph.initializer if t.name not in used]:
            graph.initializer.remove(tensor)
        for entry in self.model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = self.opset
        return self.model

    def _lower(self, node: NodeProto) -> None:
        for before, rule in _RULES.get(node.op_type, ()):
            if self.opset < before and rule(self, node):
                return
        if node.op_type.startswith("Reduce") or node.op_type in _AXES_FROM:
            self._axes_to_attribute(node)
        if not onnx.defs.has(node.op_type, self.opset):
            raise self.refused(node)
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        for item in [item for item in node.attribute if item.name not in schema.attributes]:
            value = helper.get_attribute_value(item)
            if item.name not in _HARMLESS or _HARMLESS[item.name] not in (value, None):
                raise self.refused(node)
            node.attribute.remove(item)
        if len(node.input) > schema.max_input:
            raise self.refused(node)
        self.nodes.append(node)

    def refused(self, node: NodeProto) -> ModelError:
        """That an operator has no older form here."""
        return ModelError(
            f"the network cannot be written in opset {self.opset}: {node.op_type} "
            f"({node.name}) has no form in it; take a higher --opset"
        )

    def _axes_to_attribute(self, node: NodeProto) -> None:
        """Axes, or the sizes of a split, from an input to an attribute, as they used to be."""
        if self.opset >= _AXES_FROM.get(node.op_type, 18):
            return
        if len(node.input) > 1 and node.input[1]:
            if node.input[1] not in self.constants:
                raise self.refused(node)
            name = "split" if node.op_type == "Split" else "axes"
            numbers = [int(number) for number in self.constants[node.input[1]].reshape(-1)]
            node.attribute.append(helper.make_attribute(name, numbers))
        del node.input[1:]

    def add(
        self, op: str, inputs: Sequence[str], output: str, like: NodeProto, **attributes: Any
    ) -> str:
        """A node in place of ``like``, whose name and origin it keeps."""
        made = helper.make_node(op, list(inputs), [output], f"{like.name}.{output}", **attributes)
        made.metadata_props.extend(like.metadata_props)
        self.nodes.append(made)
        return output

    def number(self, value: Any, name: str, kind: Any = np.float32) -> str:
        """A constant of the graph."""
        tensor = numpy_helper.from_array(np.asarray(value, kind), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = np.asarray(value, kind)
        return name


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def _hard_swish(low: _Lowering, node: NodeProto) -> bool:
    (x,), (y,) = node.input, node.output
    gate = low.add("HardSigmoid", [x], f"{y}.gate", node, alpha=1 / 6, beta=0.5)
    low.add("Mul", [x, gate], y, node)
    return True


def _mish(low: _Lowering, node: NodeProto) -> bool:
    (x,), (y,) = node.input, node.output
    soft = low.add("Softplus", [x], f"{y}.soft", node)
    low.add("Mul", [x, low.add("Tanh", [soft], f"{y}.tanh", node)], y, node)
    return True


def _layer_norm(low: _Lowering, node: NodeProto) -> bool:
    """By its definition; its further outputs, mean and scale, are not for inference."""
    x, y, axis = node.input[0], node.output[0], _attribute(node, "axis", -1)
    if axis >= 0:
        if x not in low.ranks:
            raise low.refused(node)
        axis -= low.ranks[x]
    if any(node.output[1:]):
        raise low.refused(node)
    axes = list(range(axis, 0))

    def mean(name: str, output: str) -> str:
        if low.opset < 18:
            return low.add("ReduceMean", [name], output, node, axes=axes, keepdims=1)
        return low.add("ReduceMean", [name, low.number(axes, f"{y}.axes", np.int64)], output, node)

    centred = low.add("Sub", [x, mean(x, f"{y}.mean")], f"{y}.centred", node)
    square = low.add("Mul", [centred, centred], f"{y}.square", node)
    epsilon = low.number(_attribute(node, "epsilon", 1e-5), f"{y}.epsilon")
    variance = low.add("Add", [mean(square, f"{y}.variance"), epsilon], f"{y}.positive", node)
    deviation = low.add("Sqrt", [variance], f"{y}.deviation", node)
    more = [name for name in node.input[1:] if name]
    steps = [("Div", deviation), *zip(("Mul", "Add"), more, strict=False)]
    value = centred
    for number, (op, other) in enumerate(steps):
        last = number == len(steps) - 1
        value = low.add(op, [value, other], y if last else f"{y}.{op}", node)
    return True


def _softmax(low: _Lowering, node: NodeProto) -> bool:
    """Before opset 13 it flattened all axes from its own on: the same for the last one only."""
    axis = _attribute(node, "axis", -1)
    if axis >= 0:
        axis -= low.ranks.get(node.input[0], 0)
    if axis != -1:
        raise low.refused(node)
    for item in [item for item in node.attribute if item.name == "axis"]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute("axis", -1))
    return False


def _shape(low: _Lowering, node: NodeProto) -> bool:
    """A part of a shape is sliced out of the whole."""
    start, end = _attribute(node, "start", 0), _attribute(node, "end", None)
    if start == 0 and end is None:
        return False
    y = node.output[0]
    whole = low.add("Shape", [node.input[0]], f"{y}.whole", node)
    bounds = [(start, "starts"), (2**31 - 1 if end is None else end, "ends"), (0, "axes")]
    inputs = [low.number([value], f"{y}.{name}", np.int64) for value, name in bounds]
    low.add("Slice", [whole, *inputs], y, node)
    return True


def _resize(low: _Lowering, node: NodeProto) -> bool:
    """Its region of interest was no option before opset 13; an empty one says none."""
    if len(node.input) > 1 and not node.input[1]:
        node.input[1] = low.number([], f"{node.output[0]}.roi")
    if len(node.input) > 3 and node.input[3] and not node.input[2]:
        node.input[2] = low.number([], f"{node.output[0]}.scales")
    return False


def _split(low: _Lowering, node: NodeProto) -> bool:
    """Into equal parts, without saying how many; parts that differ need their sizes."""
    del low
    if len(node.input) > 1 and node.input[1]:
        for item in [item for item in node.attribute if item.name == "num_outputs"]:
            node.attribute.remove(item)
    return False


def _reshape(low: _Lowering, node: NodeProto) -> bool:
    """A zero among the sizes meant "as it was" only; where none is written, that is the same."""
    if _attribute(node, "allowzero", 0) and 0 in low.constants.get(node.input[1], np.ones(1)):
        raise low.refused(node)
    for item in [item for item in node.attribute if item.name == "allowzero"]:
        node.attribute.remove(item)
    return False


_RULES: dict[str, tuple[tuple[int, Callable[[_Lowering, NodeProto], bool]], ...]] = {
    "HardSwish": ((14, _hard_swish),),
    "LayerNormalization": ((17, _layer_norm),),
    "Mish": ((18, _mish),),
    "Reshape": ((14, _reshape),),
    "Resize": ((13, _resize),),
    "Shape": ((15, _shape),),
    "Softmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Split": ((18, _split),),
}
"""By operator: before which version it is rewritten, and how; True where that put nodes in."""
