"""ONNX files made by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_net(path, width):
    """Two convolutions with ``width`` channels between them."""
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in {"a.weight": (width, 3, 3, 3), "b.weight": (8, width, 3, 3)}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["y"], pads=[1] * 4),
        helper.make_node("Conv", ["y", "b.weight"], ["z"], pads=[1] * 4),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 8, 32, 32]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return str(path)
