"""Narrow versions of an exported network by cutting its initializers: milliseconds, not seconds.

Latency does not depend on the weights' values, so a profile of many widths needs one real export
only. Whatever this cannot prove to be right is refused, and the caller exports for real.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from prunekit.artifact import Artifact
from prunekit.plan import ChannelPlan, Cut
from prunekit.serialize import write_bytes

_OUT_ONLY = ("bias", "weight_bias", "running_mean", "running_var")
# fmt: off
_PLAIN = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Div", "Dropout",
    "Elu", "Erf", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "ReduceMean", "Relu",
    "Reshape", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
))
# fmt: on
"""Operators that follow their inputs' widths by themselves."""


def narrow_onnx(dense: Artifact, plan: ChannelPlan, path: str | Path) -> Artifact | None:
    """``dense`` with ``plan``'s channels cut from its initializers, or None when unsure.

    Returns None when the graph has an operator or an initializer whose cut is not known.
    """
    model = onnx.load(dense.path)
    touched = _cut_initializers(model, plan.cuts)
    if touched is None or not _constants_fit(model):
        return None
    del model.graph.value_info[:]
    write_bytes(path, model.SerializeToString())
    return Artifact.of_file(path, precision=dense.precision, input_shapes=dense.input_shapes)


def _cut_initializers(model: ModelProto, cuts: Mapping[str, Cut]) -> set[str] | None:
    """Cut every initializer named after a module's parameter; the modules that were found."""
    transposed = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
    }
    depthwise = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv" and _attribute(node, "group", 1) > 1
    }
    found = set()
    for tensor in model.graph.initializer:
        module, _, parameter = tensor.name.rpartition(".")
        cut = cuts.get(module)
        if cut is None:
            continue
        if parameter == "weight":
            found.add(module)
        elif parameter not in _OUT_ONLY:
            return None
        if tensor.name in transposed:
            return None
        array = numpy_helper.to_array(tensor)
        array = _without(array, 0, cut.out)
        if parameter == "weight" and array.ndim > 1 and tensor.name not in depthwise:
            array = _without(array, 1, cut.in_)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in depthwise:
            group = next(item for item in node.attribute if item.name == "group")
            weight = next(t for t in model.graph.initializer if t.name == node.input[1])
            if weight.dims[1] != 1:
                return None
            group.i = weight.dims[0]
    weights = {t.name for t in model.graph.initializer}
    folded = {module for module in cuts if f"{module}.weight" not in weights}
    return found if not folded or _only_folded_norms(model, folded) else None


def _only_folded_norms(model: ModelProto, modules: set[str]) -> bool:
    """Modules without an initializer must be norms folded into their convolution.

    A convolution or linear layer whose weight lost its name still appears under its scope.
    """
    anchors: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            for item in node.metadata_props:
                if item.key == "pkg.torch.onnx.name_scopes":
                    anchors.update(part.strip(" '[]") for part in item.value.split(",")[:-1])
    named = {t.name.rpartition(".")[0] for t in model.graph.initializer}
    return not any(module in anchors and module not in named for module in modules)


def _constants_fit(model: ModelProto) -> bool:
    """Make constant reshapes follow the widths; False when some operator may not."""
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Reshape":
            shape = constants.get(node.input[1])
            if shape is None or len(numpy_helper.to_array(shape)) != 2:
                return False
            if numpy_helper.to_array(shape)[0] != -1:
                return False
            flat = numpy_helper.from_array(np.array([0, -1], dtype=np.int64), shape.name)
            shape.CopyFrom(flat)
            kept = [item for item in node.attribute if item.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type not in _PLAIN:
            return False
    return True


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _without(
    array: NDArray[np.float32], axis: int, removed: tuple[int, ...]
) -> NDArray[np.float32]:
    return np.delete(array, list(removed), axis=axis) if removed else array
