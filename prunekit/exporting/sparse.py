"""ONNX files of sparse networks: the pattern checked and marked, zeros left out if wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.density import Pattern
from prunekit.core.sparsity import SparsityPlan
from prunekit.exporting.inputs import bound, prepared
from prunekit.exporting.onnx import export
from prunekit.networks.weight_layers import layer_macs
from prunekit.support.errors import ModelError

PATTERN_KEY = "prunekit.pattern"
"""Metadata that says which pattern the weights of the file have: ``2:4``, or ``unstructured``."""
WORTH = 1 / 3
"""A sparse initializer holds a value of 4 and an index of 8 bytes for each weight that is left."""


def export_sparse(
    model: nn.Module,
    example: Any,
    path: str | Path,
    plan: SparsityPlan,
    precision: str = "fp32",
    *,
    sparse_initializers: bool = False,
    **more: Any,
) -> Artifact:
    """:func:`export`, with the plan's pattern checked in the file's own weights and marked there.

    ModelError names a layer that computes with something worked out from its sparse weight, whose
    zeros do not stay zero, and with an N:M pattern one that runs but is not found in the file.
    Weights are stored dense, zeros included, as every runtime takes them; ``more`` is what
    :func:`export` takes besides. With
    ``sparse_initializers`` those of a density below a third are stored without their zeros, which
    makes the file smaller; ONNX Runtime reads that, expands it on loading, and gains no speed.
    """
    whole, given = bound(model, example)
    working, inputs, _ = prepared(whole, given)
    run_on = inputs if isinstance(given, dict) else tuple(inputs.values())
    macs = layer_macs(working, run_on, [layer.name for layer in plan.sparse])
    idle = frozenset(layer.name for layer in plan.sparse if not macs.get(layer.name))

    def finish(file: Path) -> None:
        proto = onnx.load(file)
        check_pattern(proto, model, plan, idle)
        onnx.helper.set_model_props(
            proto, {PATTERN_KEY: plan.pattern, "prunekit.sparsity": f"{plan.sparsity:.6g}"}
        )
        if sparse_initializers:
            _leave_zeros_out(proto)
        onnx.save(proto, file)

    return export(model, example, path, precision, finish=finish, **more)


def check_pattern(
    proto: ModelProto, model: nn.Module, plan: SparsityPlan, idle: Collection[str] = ()
) -> int:
    """How many weights of the plan's layers are in the file; ModelError where one breaks its plan.

    Those of an N:M pattern must all be there, but for ``idle`` layers, which have no part in it.
    They are known by name, or where the exporter has renamed them by their values. It may have
    folded a norm into a weight, which scales outputs and keeps zeros.
    """
    modules = dict(model.named_modules())
    layers = {f"{layer.name}.weight": layer for layer in plan.sparse}
    values = {
        name: modules[layer.name].get_parameter("weight").detach().cpu().float().numpy()
        for name, layer in layers.items()
    }
    pattern, in_file = Pattern.parse(plan.pattern), set()
    for called, weight in _weights(proto):
        same = (name for name, value in values.items() if np.array_equal(value, weight))
        layer = layers.get(called) or layers.get(next(same, ""))
        if layer is None:
            continue
        in_file.add(layer.name)
        nonzero = int(np.count_nonzero(weight))
        rows = np.moveaxis(weight, 1, -1).reshape(-1, pattern.m) != 0
        if nonzero > layer.kept or (pattern.structured and rows.sum(1).max() > pattern.n):
            raise ModelError(
                f"the exported weight of {layer.name} has {nonzero} values that are not zero, "
                f"planned are {layer.kept} in pattern {pattern}"
            )
    missing = [la.name for la in plan.sparse if la.name not in in_file and la.name not in idle]
    if pattern.structured and missing:
        raise ModelError(
            f"{len(missing)} of {len(layers)} sparse weights were not found in the exported file "
            f"({missing[0]} is the first), so that its pattern {pattern} cannot be checked; keep "
            f"it dense (--dense {missing[0]})"
        )
    return len(in_file)


def _weights(proto: ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Weights of convolutions and linear layers as (outputs, inputs, kernel ...)."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    made = {node.output[0]: node for node in proto.graph.node if node.op_type == "Transpose"}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name, turned = node.input[1], _turned(node)
        if name in made and made[name].input[0] in tensors:  # a linear layer on three axes
            name, turned = made[name].input[0], not turned
        if name in tensors:
            array = numpy_helper.to_array(tensors[name])
            yield name, array.T if turned else array


def _turned(node: NodeProto) -> bool:
    """Whether the weight's first axis is the input's."""
    if node.op_type == "Conv":
        return False
    return not any(item.name == "transB" and item.i for item in node.attribute)


def _leave_zeros_out(proto: ModelProto) -> None:
    for tensor in list(proto.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        (indices,) = np.nonzero(array.reshape(-1))
        if array.ndim < 2 or not 0 < len(indices) < WORTH * array.size:
            continue
        values = numpy_helper.from_array(array.reshape(-1)[indices], tensor.name)
        places = numpy_helper.from_array(indices.astype(np.int64), f"{tensor.name}.indices")
        sparse = SparseTensorProto(values=values, indices=places, dims=array.shape)
        proto.graph.sparse_initializer.append(sparse)
        proto.graph.initializer.remove(tensor)
