"""Narrow versions of an exported network by cutting its initializers: milliseconds, not seconds.

Latency does not depend on the weights' values, so a profile of many widths needs one real export
only. Whatever this cannot prove to be right is refused, and the caller exports for real.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan, Cut
from prunekit.support.files import write_bytes

Shape = tuple[int | str, ...]

_OUT_ONLY = ("bias", "weight_bias", "running_mean", "running_var")
"""Parameters along a layer's output axis; ``weight_bias`` is what a folded norm adds."""
_NORM = ("weight", "bias", "running_mean", "running_var")
"""A batch norm's parameters in the order it reads them."""
_ANCHORS = ("Conv", "Gemm", "MatMul")
_PLAIN = """
    Add AveragePool BatchNormalization Cast Clip Concat Conv Div Dropout Elu Erf Flatten Gelu Gemm
    GlobalAveragePool HardSigmoid HardSwish Identity LeakyRelu MatMul Max MaxPool Min Mish Mul PRelu
    Pad Pow ReduceMean Relu Reshape Resize Selu Sigmoid Softmax Softplus Sqrt Sub Tanh Transpose
    Unsqueeze
"""
"""Operators that do the same at any width, given that the shapes of what they read fit."""


class _UnsureError(Exception):
    """Something whose cut is not known to be right."""


def narrow_onnx(dense: Artifact, plan: ChannelPlan, path: str | Path) -> Artifact | None:
    """``dense`` with ``plan``'s channels cut from its initializers, or None when unsure.

    Returns None when the graph has an operator or an initializer whose cut is not known, and
    when the shapes that follow do not fit each other.
    """
    if plan.removed or any(cut.others or cut.scaled for cut in plan.cuts.values()):
        return None
    model = onnx.load(dense.path)
    if len(model.functions) or any(len(t.external_data) for t in model.graph.initializer):
        return None
    whole = _whole(model, plan.cuts)
    try:
        _cut(model, plan.cuts, whole)
        _let_flattens_follow(model, whole)
        del model.graph.value_info[:]
        _check_shapes(model, whole)
    except _UnsureError:
        return None
    write_bytes(path, model.SerializeToString())
    return Artifact.of_file(path, precision=dense.precision, input_shapes=dense.input_shapes)


def _whole(model: ModelProto, cuts: Mapping[str, Cut]) -> set[str]:
    """Tensors that lose nothing: inputs, what uncut layers give, and all that follows from these.

    Operators that read nothing else do the same as before, whichever they are: so a detector
    decodes its boxes.
    """
    graph = model.graph
    whole = {info.name for info in graph.input} | {""}
    for tensor in graph.initializer:
        cut = cuts.get(tensor.name.rpartition(".")[0])
        if cut is None or not (cut.out or (cut.in_ and len(tensor.dims) > 1)):
            whole.add(tensor.name)
    for node in graph.node:
        names = {*node.input}
        if node.op_type in _ANCHORS and node.input[1] not in whole:
            module = node.input[1].rpartition(".")[0]
            if module in cuts and not cuts[module].out:
                names = {*node.input[2:]}
        if names <= whole:
            whole.update(node.output)
    return whole


def _cut(model: ModelProto, cuts: Mapping[str, Cut], whole: set[str]) -> None:
    """Cut every initializer of a module that the plan cuts.

    Every convolution and linear layer has to hold a weight with its module's name: then none is
    missed. Norms whose weights have no initializer have been folded into their convolution.
    """
    _part_norms(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    grouped = _grouped(model)
    plain = frozenset(_PLAIN.split())
    for node in model.graph.node:
        if {*node.input} <= whole and node.op_type not in _ANCHORS:
            continue
        if node.op_type not in plain or node.domain not in ("", "ai.onnx"):
            raise _UnsureError
        if node.op_type in _ANCHORS:
            module, _, parameter = node.input[1].rpartition(".")
            if node.input[1] not in weights or parameter != "weight":
                raise _UnsureError
            if module not in cuts:
                continue
            turned = node.op_type == "Gemm" and (
                not _attribute(node, "transB") or _attribute(node, "transA")
            )
            if node.op_type == "MatMul" or turned:
                raise _UnsureError
        elif node.op_type == "PRelu":
            _cut_slope(node, weights, cuts)
    for tensor in model.graph.initializer:
        module, _, parameter = tensor.name.rpartition(".")
        cut = cuts.get(module)
        if cut is None:
            continue
        if tensor.name in grouped:
            node = grouped[tensor.name]
            left = tensor.dims[1] * node.i - len(cut.in_)
            if left % tensor.dims[1]:
                raise _UnsureError
            node.i = left // tensor.dims[1]
        elif parameter == "weight" and len(tensor.dims) > 1:
            _shrink(tensor, 1, cut.in_)
        elif parameter not in ("weight", *_OUT_ONLY):
            raise _UnsureError
        _shrink(tensor, 0, cut.out)


def _part_norms(model: ModelProto) -> None:
    """Give every norm its own parameters: the exporter keeps equal ones, of fresh norms, once."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        for place, parameter in enumerate(_NORM, start=1):
            own = f"{_module_of(node)}.{parameter}"
            if node.input[place] != own and own not in weights:
                if node.input[place] not in weights:
                    raise _UnsureError
                copy = TensorProto()
                copy.CopyFrom(weights[node.input[place]])
                copy.name = own
                weights[own] = copy
                model.graph.initializer.append(copy)
            node.input[place] = own


def _module_of(node: NodeProto) -> str:
    """The module that a node was exported from."""
    scope = next((m.value for m in node.metadata_props if m.key.endswith("name_scopes")), "")
    names = [part.strip(" '[]\"") for part in scope.split(",")]
    if len(names) < 2:
        raise _UnsureError
    return names[-2]


def _grouped(model: ModelProto) -> dict[str, AttributeProto]:
    """The number of groups of each grouped convolution, by the name of its weight."""
    return {
        node.input[1]: item
        for node in model.graph.node
        if node.op_type == "Conv"
        for item in node.attribute
        if item.name == "group" and item.i > 1
    }


def _cut_slope(
    node: NodeProto, weights: Mapping[str, TensorProto], cuts: Mapping[str, Cut]
) -> None:
    """Cut a PReLU's slope: it is reshaped for broadcasting, and so has lost its name."""
    slope, module = weights.get(node.input[1]), _module_of(node)
    if slope is None:
        raise _UnsureError
    cut = cuts.get(module)
    wide = [axis for axis, size in enumerate(slope.dims) if size > 1]
    if cut is None or not wide or slope.name == f"{module}.weight":
        return
    if len(wide) > 1:
        raise _UnsureError
    _shrink(slope, wide[0], cut.out)


def _shrink(tensor: TensorProto, axis: int, removed: tuple[int, ...]) -> None:
    """Delete positions of one axis."""
    if not removed:
        return
    if axis >= len(tensor.dims) or removed[-1] >= tensor.dims[axis]:
        raise _UnsureError
    array: NDArray[Any] = np.delete(numpy_helper.to_array(tensor), list(removed), axis=axis)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _let_flattens_follow(model: ModelProto, whole: set[str]) -> None:
    """Let reshapes that flatten all but the batch find the width themselves; refuse others."""
    shapes = _shapes(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Reshape":
            continue
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        flattens = len(before) >= 2 and len(after) == 2 and before[0] == after[0]
        if node.input[1] not in constants or not flattens:
            if {*node.input} <= whole:
                continue
            raise _UnsureError
        name = f"flat.{number}"
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([0, -1], dtype=np.int64), name)
        )
        node.input[1] = name
        kept = [item for item in node.attribute if item.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)


def _check_shapes(model: ModelProto, whole: set[str]) -> None:
    """Refuse a graph whose shapes do not fit each other; shape inference checks the rest."""
    light = ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if np.prod(tensor.dims) > 64:
            tensor.ClearField("raw_data")
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _UnsureError from error
    shapes = _shapes(inferred)
    for node in model.graph.node:
        shape = shapes.get(node.input[0], ())
        if node.op_type == "Conv":
            weight = shapes[node.input[1]]
            groups = _attribute(node, "group", 1)
            fits = shape[1:2] == (int(weight[1]) * groups,) and not int(weight[0]) % groups
            fits = fits and all(shapes[name] == weight[:1] for name in node.input[2:] if name)
        elif node.op_type == "BatchNormalization":
            fits = all(shapes[name] == shape[1:2] for name in node.input[1:])
        elif node.op_type == "PRelu":
            slope = shapes[node.input[1]]
            pairs = zip(reversed(slope), reversed(shape), strict=False)
            fits = len(slope) <= len(shape) and all(size in (1, other) for size, other in pairs)
        elif node.op_type == "Resize":
            # sizes would hold the channels
            fits = len(node.input) < 4 or {*node.input} <= whole
        else:
            fits = True
        if not fits or any(name not in shapes for name in node.output if name):
            raise _UnsureError


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Known shapes by name: numbers, or names where they vary."""
    graph = model.graph
    shapes = {info.name: _dims(info) for info in (*graph.input, *graph.value_info, *graph.output)}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _dims(info: ValueInfoProto) -> Shape:
    return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)
