"""fp16 in the file itself: an ONNX graph with 16-bit tensors, and fp32 where 16 bits do not do.

For strongly typed runtimes, which compute in the types they are given. Inputs and outputs stay
fp32, so that nobody who feeds the file has to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError

LARGEST = 65504.0
"""The largest number of fp16."""
ROOM = 4.0
"""Values seen in fp32 must stay this many times below it: other inputs give larger ones."""
_EITHER = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose DepthToSpace Div Dropout Einsum Elu Equal Erf Expand Flatten Floor Gather
    Gelu Gemm GlobalAveragePool GlobalMaxPool Greater HardSigmoid HardSwish Identity LeakyRelu
    Less MatMul Max MaxPool Min Mish Mul Neg Not Or PRelu Pad Range ReduceMax ReduceMin Relu
    Reshape Round Selu Shape Sigmoid Sign Slice SpaceToDepth Split Squeeze Sub Swish Tanh Tile
    TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - a list of sixty would take a page
)
"""What computes in fp16 as well as in fp32. All others stay in fp32: softmaxes, norms, powers and
sums over axes, which overflow or lose what is small, and what nobody knows."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_WORD: dict[int, str] = {TensorProto.FLOAT: "float", TensorProto.FLOAT16: "half"}


def to_half(model: ModelProto, peaks: Mapping[str, float]) -> ModelProto:
    """A copy of an fp32 ``model`` in fp16; values called in ``peaks`` reached so much in fp32.

    In fp32 stay softmaxes, norms, sums over axes, powers, what is not known to run in either type,
    weights that fp16 cannot hold, and nodes whose values come near fp16's largest number.
    """
    if len(model.functions) or any(a.HasField("g") for n in model.graph.node for a in n.attribute):
        raise ModelError("a network with branches or functions cannot be written in fp16")
    done = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = done.graph
    types = _Types(done)
    nodes: list[NodeProto] = []
    for node in graph.node:
        wide = _stays(node, types.weights, peaks)
        nodes += [*types.feed(node, TensorProto.FLOAT if wide else TensorProto.FLOAT16), node]
    nodes += types.give_back([value.name for value in graph.output], nodes)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    types.settle_weights(graph)
    try:
        onnx.checker.check_model(done)
        return onnx.shape_inference.infer_shapes(done, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the network cannot be written in fp16: {reason}") from error


def _stays(node: NodeProto, weights: Mapping[str, TensorProto], peaks: Mapping[str, float]) -> bool:
    """Whether ``node`` computes in fp32."""
    if node.op_type not in _EITHER or node.domain not in ("", "ai.onnx"):
        return True
    if any(peaks.get(name, 0.0) * ROOM > LARGEST for name in (*node.input, *node.output)):
        return True
    return any(name in weights and not _fits(weights[name]) for name in node.input)


def _fits(tensor: TensorProto) -> bool:
    """Whether fp16 holds a weight: no number too large, and not most of them lost as too small."""
    if tensor.data_type != TensorProto.FLOAT:
        return True
    values = np.abs(numpy_helper.to_array(tensor))
    lost = (values > 0) & (values.astype(np.float16) == 0) if _in_range(values) else values > -1
    return not lost.size or float(lost.mean()) < 0.5


def _in_range(values: NDArray[Any]) -> bool:
    return bool(values.max(initial=0.0) <= LARGEST)


class _Types:
    """The types that values have by now, and the casts between them, each made once."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self._kinds |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self._cast: dict[tuple[str, int], str] = {}

    def feed(self, node: NodeProto, wanted: int) -> list[NodeProto]:
        """Have ``node`` compute in ``wanted``; gives the casts that its inputs need."""
        casts = []
        for place, name in enumerate(node.input):
            kind = self._kinds.get(name)
            if kind not in _FLOATS or kind == wanted or (node.op_type == "Resize" and place):
                continue
            key = (name, wanted)
            if key not in self._cast:
                self._cast[key] = made = f"{name}.{_WORD[wanted]}"
                self._kinds[made] = wanted
                if name not in self.weights:
                    casts.append(_cast_node(name, made, wanted))
            node.input[place] = self._cast[key]
        for item in node.attribute:
            if node.op_type == "Cast" and item.name == "to" and item.i in _FLOATS:
                item.i = wanted
            elif item.name == "value" and item.t.data_type in _FLOATS:
                item.t.CopyFrom(_as(item.t, wanted))
        for name in node.output:
            if self._kinds.get(name) in _FLOATS:
                self._kinds[name] = wanted
        return casts

    def give_back(self, outputs: Sequence[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """The casts that give the graph its fp32 outputs, under their own names."""
        casts = []
        for name in outputs:
            if self._kinds.get(name) != TensorProto.FLOAT16:
                continue
            inner = f"{name}.inner"
            for node in nodes:
                for names in (node.input, node.output):
                    for place, tensor in enumerate(names):
                        if tensor == name:
                            names[place] = inner
            casts.append(_cast_node(inner, name, TensorProto.FLOAT))
        return casts

    def settle_weights(self, graph: onnx.GraphProto) -> None:
        """Put the weights that are read in; one that is read in fp16 only keeps its name."""
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        tensors = [tensor for name, tensor in self.weights.items() if name in used]
        renamed = {}
        for (name, wanted), made in self._cast.items():
            if name in self.weights and made in used:
                tensor = _as(self.weights[name], wanted)
                tensor.name = made if name in used else name
                renamed[made] = tensor.name
                tensors.append(tensor)
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = renamed.get(name, name)
        del graph.initializer[:]
        graph.initializer.extend(tensors)


def _cast_node(name: str, made: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [name], [made], name=f"cast {made}", to=to)


def _as(tensor: TensorProto, wanted: int) -> TensorProto:
    """A tensor's numbers in another floating type."""
    kind = np.float16 if wanted == TensorProto.FLOAT16 else np.float32
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name)


def peaks_of(path: str | Path, batches: Sequence[Arrays]) -> dict[str, float]:
    """The largest magnitude that every value of an fp32 ONNX file takes on ``batches``."""
    import onnxruntime as ort

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    known = {value.name for value in model.graph.output}
    watched = [
        value
        for value in model.graph.value_info
        if value.name not in known and value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    model.graph.output.extend(watched)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    peaks = dict.fromkeys(names, 0.0)
    for batch in batches:
        for name, value in batch.items():
            peaks[name] = max(peaks.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
        for name, value in zip(names, session.run(None, dict(batch)), strict=True):
            peak = float(np.abs(value).max(initial=0.0)) if value.dtype.kind == "f" else 0.0
            peaks[name] = max(peaks[name], peak)
    return peaks
