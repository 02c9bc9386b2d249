"""The graph of an ONNX file: layers, shapes, owners of nodes, precisions."""

from __future__ import annotations

import onnx
import pytest
from torch import nn

import prunekit as pk
from prunekit.core.target import Target
from prunekit.runtimes import runtime_for
from prunekit.runtimes.onnx_graph import check_precision, load_model, read
from prunekit.support.errors import UsageError
from support.engines import NETS, layers
from support.nets import Residual, image, randomise


def test_a_target_refuses_files_of_another_precision(tmp_path):
    made = pk.export(randomise(Residual()), image(), tmp_path / "exact.onnx")
    target = Target("onnxruntime", "cpu", "int8")
    with pytest.raises(
        UsageError, match=r"exact\.onnx is in fp32, .* one in int8: prunekit export"
    ):
        pk.bench([made], target, max_seconds=0.1)
    check_precision("x", load_model(made.path), "fp32")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_onnx_runtime_on_a_cpu_has_no(precision):
    with pytest.raises(pk.PrunekitError, match=r"compute .* networks in fp32"):
        runtime_for(Target("onnxruntime", "cpu", precision))


@pytest.mark.parametrize("net", NETS)
def test_graph_names_every_layer_as_the_model_does(exported, net):
    module, artifact = exported(net)
    graph = read(artifact.path)
    assert set(graph.layers) == layers(module)
    assert graph.inputs == {"input": (-1, 3, 32, 32)}
    assert set(graph.nodes.values()) == layers(module)
    assert len(graph.nodes) == len(onnx.load(artifact.path).graph.node)


@pytest.mark.parametrize("net", NETS)
def test_graph_knows_the_layers_shapes(exported, net):
    module, artifact = exported(net)
    for anchor in read(artifact.path).anchors:
        layer = module.get_submodule(anchor.layer)
        if isinstance(layer, nn.Linear):
            assert (anchor.cin, anchor.cout) == (layer.in_features, layer.out_features)
        else:
            assert (anchor.cin, anchor.cout) == (layer.in_channels, layer.out_channels)
            assert (anchor.kernel, anchor.stride) == (layer.kernel_size, layer.stride)
            assert anchor.groups == layer.groups
            assert anchor.out_hw == tuple(size // layer.stride[0] for size in anchor.in_hw)


def owner_by_op(artifact, op):
    graph = read(artifact.path)
    return [graph.nodes[n.name] for n in onnx.load(artifact.path).graph.node if n.op_type == op]


def test_epilogues_belong_to_the_layer_before(exported):
    _, artifact = exported("residual")
    assert owner_by_op(artifact, "Relu") == [
        *("stem", "layer1.conv1", "layer1.conv2"),
        *("layer2.conv1", "layer2.down.0"),
    ]
    assert owner_by_op(artifact, "Add") == ["layer1.conv2", "layer2.down.0"]
    assert owner_by_op(artifact, "MaxPool") == ["stem"]
    assert owner_by_op(artifact, "ReduceMean") == ["layer2.down.0"]


def test_what_follows_a_concat_belongs_to_the_layer_that_reads_it(exported):
    _, artifact = exported("concats")
    assert owner_by_op(artifact, "Concat") == ["conv2", "out"]
    assert owner_by_op(artifact, "BatchNormalization") == ["stem", "conv2", "out"]
    assert owner_by_op(artifact, "Relu") == ["stem", "conv2", "out"]
    assert owner_by_op(artifact, "ReduceMean") == ["out"]


def test_excitation_belongs_to_the_feature_map_it_scales(exported):
    _, artifact = exported("mobile")
    graph = onnx.load(artifact.path).graph
    owners = read(artifact.path).nodes
    scaling = [n for n in graph.node if n.op_type == "Mul"][-1]
    assert owners[scaling.name] == "body.6"
