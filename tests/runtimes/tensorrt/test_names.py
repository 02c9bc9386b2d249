"""What TensorRT calls its layers, and the nodes of the file that they stand for."""

import pytest

from prunekit.runtimes.onnx_graph import Anchor, OnnxGraph
from prunekit.runtimes.tensorrt.names import Stands, layer_times, stands_for

ORDER = [
    *("node_Conv_1", "node_relu", "node_Conv_2", "node_add", "node_relu_1", "node_mul"),
    *("/model/fc1/Gemm", "/model/act/Erf", "/model/act/Mul", "/model/fc2/Gemm", "softmax, last"),
]


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("node_Conv_1", ["node_Conv_1"]),
        ("node_Conv_1 + node_relu", ["node_Conv_1", "node_relu"]),
        ("node_Conv_2 + node_add + node_relu_1", ["node_Conv_2", "node_add", "node_relu_1"]),
        ("node_Conv_1 || node_Conv_2", ["node_Conv_1", "node_Conv_2"]),
        (
            "node_Conv_1 + node_relu || node_Conv_2 + node_relu_1",
            ["node_Conv_1", "node_relu", "node_Conv_2", "node_relu_1"],
        ),
        ("node_Conv_2 + PWN(node_relu_1)", ["node_Conv_2", "node_relu_1"]),
        ("PWN(node_relu_1)", ["node_relu_1"]),
        (
            "PWN(PWN(PWN(/model/act/Constant_output_0 + (Unnamed Layer* 12) [Shuffle], "
            "/model/act/Erf)), /model/act/Mul)",
            ["/model/act/Erf", "/model/act/Mul"],
        ),
        ("{ForeignNode[node_Conv_2...node_mul]}", ORDER[2:6]),
        ("{ForeignNode[/model/fc1/Gemm.../model/fc2/Gemm]}", ORDER[6:10]),
        ("{ForeignNode[conv.weight.../model/fc2/Gemm]}", ["/model/fc2/Gemm"]),
        (
            "{ForeignNode[/model/fc1/Gemm + (Unnamed Layer* 3) [Shuffle].../model/act/Mul]}",
            ORDER[6:9],
        ),
        ("{ForeignNode[node_mul...node_Conv_1]}", ["node_mul", "node_Conv_1"]),
        ("{ForeignNode[node_relu]}", ["node_relu"]),
        ("conv2.weight + QuantizeLinear_8 + node_Conv_2 + node_relu_1", [ORDER[2], ORDER[4]]),
        ("node_Conv_1_clone_1", ["node_Conv_1"]),
        ("node_Conv_2_myl0_3", ["node_Conv_2"]),
        ("node_Conv_1 [Convolution]", ["node_Conv_1"]),
        ("softmax, last", ["softmax, last"]),
        ("(Unnamed Layer* 12) [Constant]", []),
        ("__myl_CastMulAdd_myl0_3", []),
        ("", []),
    ],
)
def test_names_are_read_back(name, nodes):
    assert stands_for(name, ORDER) == Stands(tuple(nodes))


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to node_Conv_1 + node_relu", ORDER[:2]),
        ("Reformatting CopyNode for Output Tensor 0 to node_Conv_2", ["node_Conv_2"]),
        (
            "Reformatting CopyNode for Input Tensor 1 to {ForeignNode[node_add...node_mul]}",
            ORDER[3:6],
        ),
        ("shuffle_between_node_relu_output_and_node_Conv_2", ["node_relu", "node_Conv_2"]),
        ("shuffle_after_(Unnamed Layer* 779) [Convolution]_output", []),
        ("reshape_before_/model/fc1/Gemm", ["/model/fc1/Gemm"]),
        ("copied_squeeze_after_node_mul", ["node_mul"]),
        ("node_relu_1 copy", ["node_relu_1"]),
    ],
)
def test_layers_that_move_data_are_told_apart(name, nodes):
    assert stands_for(name, ORDER) == Stands(tuple(nodes), layout=True)


def graph():
    anchors = (
        Anchor("node_Conv_1", "one", "Conv", 8, 8, (3, 3), (1, 1), 1, (4, 4), (4, 4)),
        Anchor("node_Conv_2", "two", "Conv", 8, 24, (3, 3), (1, 1), 1, (4, 4), (4, 4)),
    )
    owners = {"node_Conv_1": "one", "node_relu": "one", "node_Conv_2": "two", "node_mul": "two"}
    return OnnxGraph("net.onnx", {}, anchors, owners, {})


def test_times_go_to_the_layers_that_names_tell():
    runs = [
        [
            ("Reformatting CopyNode for Input Tensor 0 to node_Conv_1 + node_relu", 0.25),
            ("node_Conv_1 + node_relu", 1.0),
            ("__myl_Mul_myl0_1", 0.5),
            ("node_Conv_2", 2.0),
            ("node_mul", 0.25),
        ],
        [("node_Conv_1 || node_Conv_2", 4.0)],
    ]
    times, told = layer_times(runs, graph())
    # side by side they share by their multiply-adds, 1 to 3; a name that tells nothing goes on
    assert times == [{"one": 1750.0, "two": 2250.0}, {"one": 1000.0, "two": 3000.0}]
    assert told == pytest.approx(7.5 / 8)


def test_what_comes_before_all_layers_is_the_firsts():
    times, told = layer_times([[("mystery", 1.0), ("node_Conv_2", 1.0)]], graph())
    assert times == [{"one": 1000.0, "two": 1000.0}]
    assert told == 0.5
