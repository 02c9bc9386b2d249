"""What an ONNX file says about its layers: names, shapes, and which layer every node belongs to."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto

from prunekit.support.errors import FileError, UsageError, first_line

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_THROUGH = ("Transpose", "Identity", "Cast", "DequantizeLinear")
"""What may stand between a weight and its layer."""


@dataclass(frozen=True)
class Anchor:
    """A node with a weight: the layer that other nodes are counted to."""

    node: str
    layer: str
    op: str
    cin: int
    cout: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    in_hw: tuple[int, ...] = ()
    out_hw: tuple[int, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample, of a matrix product for one row."""
        places = self.in_hw if self.op == "ConvTranspose" else self.out_hw
        pairs = self.cin * self.cout // max(1, self.groups)
        return pairs * math.prod(self.kernel) * math.prod(max(1, size) for size in places)


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX model read for its layers.

    ``nodes`` and ``values`` give the owning layer of every node and of every value a node makes;
    ``inputs`` the shapes of the inputs, -1 for the batch.
    """

    path: str
    inputs: dict[str, tuple[int, ...]]
    anchors: tuple[Anchor, ...]
    nodes: dict[str, str] = field(repr=False)
    values: dict[str, str] = field(repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names in the order they run, each once."""
        return tuple(dict.fromkeys(anchor.layer for anchor in self.anchors))

    def shares(self, names: Iterable[str], *, main_first: bool = False) -> dict[str, float]:
        """The layers of a node that a runtime made of those called ``names``, with their shares.

        The anchors among them share it by their multiply-adds; without any, it belongs to the
        owner of the last name known here, or with ``main_first`` of the first. A name may have
        something behind a slash that a runtime added. Empty where no name is known.
        """
        known = [name for name in map(self._known, names) if name is not None]
        anchors = [anchor for anchor in self.anchors if anchor.node in known]
        if not anchors:
            main = known[:1] if main_first else known[-1:]
            return {self.nodes.get(name) or self.values[name]: 1.0 for name in main}
        total = sum(anchor.macs for anchor in anchors)
        shares = dict.fromkeys((anchor.layer for anchor in anchors), 0.0)
        for anchor in anchors:
            shares[anchor.layer] += anchor.macs / total if total else 1 / len(anchors)
        return shares

    def _known(self, name: str) -> str | None:
        while name and name not in self.nodes and name not in self.values:
            name = name.rpartition("/")[0]
        return name or None


def read(path: str | Path) -> OnnxGraph:
    """The layers of the ONNX file at ``path``; a damaged file is named in the error."""
    model = load_model(path)
    inputs = input_shapes(model, str(path))
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    if any(name not in known for node in model.graph.node for name in node.output if name):
        try:
            model = onnx.shape_inference.infer_shapes(model)
        except Exception as error:  # models over 2 GiB raise protobuf's errors, bad ones onnx's
            raise FileError(
                f"{path}: shapes cannot be inferred ({first_line(error, longest=200)})"
            ) from error
    reader = _Reader(model)
    nodes, values = reader.owners()
    return OnnxGraph(str(path), inputs, tuple(reader.anchors.values()), nodes, values)


def load_model(path: str | Path) -> onnx.ModelProto:
    """The model in the file, parsed and not empty."""
    try:
        model = onnx.load(str(path))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own error types differ between its versions
        raise FileError(
            f"{path} is not a whole ONNX file ({first_line(error, longest=200)}); export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise FileError(f"{path} is not a whole ONNX file (no nodes in it); export it again")
    return model


def precision_of(model: onnx.ModelProto) -> str:
    """What a file computes in: int8 with quantisers in it, else its lowest floating type."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return "int8"
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in kinds else "fp32"


def check_precision(path: str, model: onnx.ModelProto, wanted: str) -> None:
    """Refuse a file that a runtime would compute in another precision than the target's."""
    precision = precision_of(model)
    if precision != wanted:
        raise UsageError(
            f"{path} is in {precision}, and would be computed in that; the target needs one in "
            f"{wanted}: prunekit export --precision {wanted}"
        )


def input_shapes(model: onnx.ModelProto, path: str) -> dict[str, tuple[int, ...]]:
    """Input names to shapes; the batch, and only the batch, may be left open (-1)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        sizes = tuple(_sizes(value))
        if any(size < 0 for size in sizes[1:]):
            raise UsageError(
                f"{path}: input {value.name!r} leaves more than its batch open; "
                "export it with fixed sizes"
            )
        shapes[value.name] = sizes
    return shapes


def _sizes(value: onnx.ValueInfoProto) -> Iterable[int]:
    for size in value.type.tensor_type.shape.dim:
        yield size.dim_value if size.HasField("dim_value") else -1


class _Reader:
    """One pass over a graph; nodes are in running order, as ONNX demands."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.all = [_named(node, number) for number, node in enumerate(graph.node)]
        self.constants = {tensor.name for tensor in graph.initializer} | {""}
        self.shapes: dict[str, tuple[int, ...]] = {
            value.name: tuple(_sizes(value))
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.all:
            reads = [name for name in node.input if name]
            if all(name in self.constants for name in reads):
                self.constants.update(node.output)
            for name in node.output:
                self.maker[name] = node
            for name in dict.fromkeys(reads):
                self.readers.setdefault(name, []).append(node)
        self.place = {node.name: place for place, node in enumerate(self.all)}
        self.anchors = {
            node.name: anchor for node in self.all if (anchor := self._anchor(node)) is not None
        }

    def _anchor(self, node: NodeProto) -> Anchor | None:
        weight = self._weight(node)
        if weight is None:
            return None
        place, name = weight
        shape = self.shapes.get(node.input[place], ())
        facts: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        layer = self._layer_name(node, name)
        if node.op_type in ("Gemm", "MatMul"):
            rows, columns = (*shape, 0, 0)[:2]
            if len(shape) > 2:
                rows, columns = shape[-2:]
            flipped = facts.get("transB" if place == 1 else "transA", 0) == 1
            if flipped != (place == 0):
                rows, columns = columns, rows
            return Anchor(node.name, layer, node.op_type, rows, columns)
        groups = int(facts.get("group", 1))
        first, second, *kernel = (*shape, 0, 0) if len(shape) < 2 else shape
        cin, cout = second * groups, first
        if node.op_type == "ConvTranspose":
            cin, cout = first, second * groups
        return Anchor(
            node.name,
            layer,
            node.op_type,
            cin,
            cout,
            tuple(kernel),
            tuple(facts.get("strides", ())) or (1,) * len(kernel),
            groups,
            self.shapes.get(node.input[0], ())[2:],
            self.shapes.get(node.output[0], ())[2:],
        )

    def _weight(self, node: NodeProto) -> tuple[int, str] | None:
        """Which input of an anchor is its weight, and the initializer behind it."""
        if node.op_type not in ANCHORS or node.domain not in ("", "ai.onnx"):
            return None
        places = (1,) if node.op_type.startswith("Conv") else (1, 0)
        for place in places:
            if place < len(node.input) and node.input[place] in self.constants:
                name = node.input[place]
                while (maker := self.maker.get(name)) is not None and maker.op_type in _THROUGH:
                    name = maker.input[0]
                return place, name
        return None

    def _layer_name(self, node: NodeProto, weight: str) -> str:
        plain = weight.removesuffix("_quantized").removesuffix(".half")
        if plain.endswith(".weight"):
            return plain.removesuffix(".weight")
        for fact in node.metadata_props:
            if fact.key == "pkg.torch.onnx.name_scopes":
                scopes = _scopes(fact.value)
                if len(scopes) > 1 and scopes[-2]:
                    return scopes[-2]
        return node.name

    def owners(self) -> tuple[dict[str, str], dict[str, str]]:
        """The owning layer of every node, and of every value that a node makes."""
        owner: dict[str, Anchor | None] = {}
        mixed: set[str] = set()
        """Nodes from a Concat up to the next anchor."""
        for node in self.all:
            if node.name in self.anchors:
                owner[node.name] = self.anchors[node.name]
                continue
            source = self._source(node, owner)
            owner[node.name] = owner[source.name] if source is not None else None
            if node.op_type == "Concat" or (source is not None and source.name in mixed):
                mixed.add(node.name)
        for node in self.all:
            if node.name in mixed and (consumer := self._consumer(node)) is not None:
                owner[node.name] = consumer
        first = next(iter(self.anchors.values()), None)
        nodes: dict[str, str] = {}
        values: dict[str, str] = {}
        for node in self.all:
            anchor = owner[node.name] or first
            if anchor is not None:
                nodes[node.name] = anchor.layer
                values.update(dict.fromkeys(filter(None, node.output), anchor.layer))
        return nodes, values

    def _source(self, node: NodeProto, owner: dict[str, Anchor | None]) -> NodeProto | None:
        """The producer a node is counted with: of its full-sized inputs, the one run last.

        So a residual add goes with the branch that ends last, and a squeeze-and-excite product
        with the large feature map rather than the small scale.
        """
        makers = [
            (name, self.maker[name])
            for name in node.input
            if name in self.maker and name not in self.constants
        ]
        out = self.shapes.get(node.output[0], ())
        full = [maker for name, maker in makers if self.shapes.get(name, ()) == out]
        candidates = full or [maker for _, maker in makers[:1]]

        def running_order(maker: NodeProto) -> int:
            anchor = owner[maker.name]
            return -1 if anchor is None else self.place[anchor.node]

        return max(candidates, key=running_order, default=None)

    def _consumer(self, node: NodeProto) -> Anchor | None:
        """The only anchor that reads what ``node`` makes, directly or through other nodes.

        Ways through a further Concat count only if there is no other way.
        """
        direct, later = self._reached(node, through_concat=False), None
        if not direct:
            later = self._reached(node, through_concat=True)
        anchors = direct or later or {}
        return next(iter(anchors.values())) if len(anchors) == 1 else None

    def _reached(self, node: NodeProto, *, through_concat: bool) -> dict[str, Anchor]:
        reached: dict[str, Anchor] = {}
        seen: set[str] = set()
        waiting = [node]
        while waiting:
            for name in waiting.pop().output:
                for reader in self.readers.get(name, []):
                    if reader.name in seen:
                        continue
                    seen.add(reader.name)
                    if reader.name in self.anchors:
                        reached[reader.name] = self.anchors[reader.name]
                    elif through_concat or reader.op_type != "Concat":
                        waiting.append(reader)
        return reached


def _named(node: NodeProto, number: int) -> NodeProto:
    if not node.name:
        node.name = f"node_{number}_{node.op_type}"
    return node


def _scopes(text: str) -> list[str]:
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(scope) for scope in scopes] if isinstance(scopes, list) else []
