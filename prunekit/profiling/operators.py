"""Networks of one layer: what a grid of single operators and the probe of a device are timed on."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import LayerShape
from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.support.files import write_bytes

OPSET = 18
STACK = ("dense", "pointwise", "depthwise")
"""The layers of :func:`stack` that are worth looking at."""
STACK_IN = 16


def stack(width: int, side: int, target: Target, live: bool, path: Path) -> Artifact:
    """A convolution of every kind at ``width`` channels, one after the other, on small images.

    In a row, so that each gets and gives the layout that it has in a whole network.
    """
    shapes = {
        "into": LayerShape("conv", (1, 1)),
        "dense": LayerShape("conv", (3, 3)),
        "depthwise": LayerShape("depthwise", (3, 3)),
        "pointwise": LayerShape("conv", (1, 1)),
    }
    layers = [
        (
            name,
            replace(shape, stride=(1, 1), dilation=(1, 1), in_hw=(side, side), out_hw=(side, side)),
            STACK_IN if name == "into" else width,
        )
        for name, shape in shapes.items()
    ]
    if live:
        modules = OrderedDict((name, _module(shape, cin, width)) for name, shape, cin in layers)
        example = torch.zeros(target.batch, STACK_IN, side, side)
        return live_artifact(nn.Sequential(modules).eval(), example)
    nodes, constants, last = [], [], "input"
    for name, shape, cin in layers:
        made, weights = _node(shape, cin, width, name, last)
        nodes.append(made)
        constants += weights
        last = name
    inputs: dict[str, tuple[int, ...]] = {"input": (-1, STACK_IN, side, side)}
    model = _model(nodes, inputs, {last: (-1, width, side, side)}, constants)
    write_bytes(path, model.SerializeToString())
    return Artifact.of_file(path, input_shapes=inputs)


def operator(
    shape: LayerShape, cin: int, cout: int, target: Target, live: bool, path: Path
) -> Artifact:
    """One layer of ``shape`` at these widths with a ReLU or sum behind it, where it has one.

    At its first call's size; ``shape.groups`` are the groups at these widths. ``live`` gives a
    module, else an ONNX file at ``path``.
    """
    inputs = {"input": _input_shape(shape, cin, -1)}
    if "add" in shape.epilogue:
        inputs["other"] = _output_shape(shape, cout)
    if live:
        module = _Operator(_module(shape, cin, cout), relu=_activation(shape)).eval()
        sizes = ((target.batch, *size[1:]) for size in inputs.values())
        return live_artifact(module, tuple(torch.zeros(size) for size in sizes))
    write_bytes(path, _onnx(shape, cin, cout, inputs).SerializeToString())
    return Artifact.of_file(path, input_shapes=inputs)


class _Operator(nn.Module):
    """A layer, a sum where there is something to add, and a ReLU."""

    def __init__(self, layer: nn.Module, relu: bool) -> None:
        super().__init__()
        self.layer, self.relu = layer, relu

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = self.layer(x)
        x = x if other is None else x + other
        return x.relu() if self.relu else x


def _input_shape(shape: LayerShape, cin: int, batch: int) -> tuple[int, ...]:
    return (batch, *shape.in_hw, cin) if shape.kind == "linear" else (batch, cin, *shape.in_hw)


def _output_shape(shape: LayerShape, cout: int) -> tuple[int, ...]:
    return (-1, *shape.out_hw, cout) if shape.kind == "linear" else (-1, cout, *shape.out_hw)


def _pads(shape: LayerShape) -> list[tuple[int, int]]:
    """What each axis was padded by, before and behind, as its sizes tell."""
    pads = []
    sizes = zip(shape.in_hw, shape.out_hw, strict=True)
    for axis, (before, after) in enumerate(sizes):
        reach = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1
        whole = max(0, (after - 1) * shape.stride[axis] + reach - before)
        # an uneven rest is cut off behind, as frameworks do that pad both ends alike
        pads.append(((whole + 1) // 2, whole // 2))
    return pads


def _groups(shape: LayerShape, cin: int) -> int:
    return cin if shape.kind == "depthwise" else shape.groups


def _activation(shape: LayerShape) -> bool:
    return "relu" in shape.epilogue


def _module(shape: LayerShape, cin: int, cout: int) -> nn.Module:
    if shape.kind == "linear":
        return nn.Linear(cin, cout)
    dims = len(shape.kernel)
    settings: dict[str, Any] = {
        "stride": shape.stride,
        "dilation": shape.dilation,
        "groups": _groups(shape, cin),
    }
    if shape.kind == "transposed":
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        settings |= _transposed(shape)
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        settings["padding"] = tuple(before for before, _ in _pads(shape))
    module: nn.Module = kind(cin, cout, shape.kernel, **settings)
    return module


def _transposed(shape: LayerShape) -> dict[str, tuple[int, ...]]:
    """Padding and output padding that give the out-size."""
    padding, rest = [], []
    for axis, (before, after) in enumerate(zip(shape.in_hw, shape.out_hw, strict=True)):
        reach = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1
        over = (before - 1) * shape.stride[axis] + reach - after
        padding.append(max(0, math.ceil(over / 2)))
        rest.append(2 * padding[-1] - over)
    return {"padding": tuple(padding), "output_padding": tuple(rest)}


def _onnx(
    shape: LayerShape, cin: int, cout: int, inputs: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    made, constants = _node(shape, cin, cout, "layer", "input")
    nodes, last = [made], "layer"
    if "other" in inputs:
        nodes.append(helper.make_node("Add", [last, "other"], ["sum"], "sum"))
        last = "sum"
    if _activation(shape):
        nodes.append(helper.make_node("Relu", [last], ["relu"], "relu"))
        last = "relu"
    return _model(nodes, inputs, {last: _output_shape(shape, cout)}, constants)


def _node(
    shape: LayerShape, cin: int, cout: int, name: str, source: str
) -> tuple[NodeProto, list[TensorProto]]:
    """A layer called ``name`` that reads ``source``, and its weights."""
    groups = _groups(shape, cin)
    attributes: dict[str, Any] = {}
    weight: tuple[int, ...]
    if shape.kind == "linear":
        op = "MatMul" if shape.in_hw else "Gemm"
        weight = (cin, cout)
    else:
        pads = _pads(shape)
        op, weight = "Conv", (cout, cin // groups, *shape.kernel)
        attributes = {
            "kernel_shape": shape.kernel,
            "strides": shape.stride,
            "dilations": shape.dilation,
            "group": groups,
            "pads": [p for p, _ in pads] + [p for _, p in pads],
        }
        if shape.kind == "transposed":
            padding = _transposed(shape)
            op, weight = "ConvTranspose", (cin, cout // groups, *shape.kernel)
            attributes["pads"] = [*padding["padding"], *padding["padding"]]
            attributes["output_padding"] = padding["output_padding"]
    scale = math.sqrt(math.prod(weight[1:]))
    values = np.random.default_rng(0).standard_normal(weight, dtype=np.float32) / scale
    constants = [numpy_helper.from_array(values.astype(np.float32), f"{name}.weight")]
    if op != "MatMul":
        constants.append(numpy_helper.from_array(np.zeros(cout, np.float32), f"{name}.bias"))
    read = [source, *(constant.name for constant in constants)]
    return helper.make_node(op, read, [name], name, **attributes), constants


def _model(
    nodes: list[NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
    constants: list[TensorProto],
) -> onnx.ModelProto:
    taken = [_value(name, sizes) for name, sizes in inputs.items()]
    given = [_value(name, sizes) for name, sizes in outputs.items()]
    graph = helper.make_graph(nodes, "operator", taken, given, constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    sizes = ["batch" if size < 0 else size for size in shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
