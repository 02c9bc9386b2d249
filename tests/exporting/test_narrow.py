"""Narrowed exports equal the real export of the slim network, or are declined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

import prunekit as pk
from prunekit.exporting import narrow_onnx
from support.exported import relative, run
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    PreActivation,
    Residual,
    Slopes,
    SqueezeExcite,
    Tokens,
    image,
    randomise,
)


class Resized(Concat):
    def forward(self, x):
        x = F.relu(self.a(x))
        small = F.interpolate(F.max_pool2d(self.b(x), 2), scale_factor=2)
        x = torch.cat([x, small], 1)
        return self.fc(F.relu(self.c(F.relu(self.bn(x)))).mean((2, 3)))


class LinearSlopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 12), nn.PReLU(12), nn.Linear(12, 9), nn.PReLU())
        self.fc = nn.Linear(9, 3)

    def forward(self, x):
        return self.fc(self.net(x))


class Regrouped(nn.Module):
    """A reshape of the input that mixes the batch, which looks like a flatten."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 9), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(F.relu(self.a(x))), self.c(x.reshape(-1, 4))


class Decoded(Concat):
    """Boxes from codes, as a detector has them: operators of all kinds on what no cut touches."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Conv2d(self.c.out_channels, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.bn(torch.cat([x, self.b(x)], 1)))
        codes = self.codes(F.relu(self.c(x)))
        codes = (
            codes.view(codes.shape[0], 2, 4, -1).permute(0, 3, 1, 2).reshape(codes.shape[0], -1, 4)
        )
        return torch.cat([codes[..., :2], torch.exp(codes[..., 2:].clamp(max=2))], -1)


class NamedWidth(Concat):
    """A reshape that holds the number of channels."""

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.bn(torch.cat([x, self.b(x)], 1)))
        return self.fc(F.relu(self.c(x)).flatten(2).mean(2))


ROWS = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
NARROWED = {
    "residual": (Residual, image()),
    "pre-activation": (PreActivation, image()),
    "depthwise": (Depthwise, image()),
    "channel multiplier": (lambda: Depthwise(multiplier=2), image()),
    "concat": (Concat, image()),
    "SE": (SqueezeExcite, image()),
    "SE of linear layers": (lambda: SqueezeExcite(True), image()),
    "flatten": (Flatten, image()),
    "slopes": (Slopes, image()),
    "slopes of linear layers": (LinearSlopes, ROWS[:, :5]),
    "resize": (Resized, image()),
    "boxes from codes": (Decoded, image()),
    "a reshape of the input": (Regrouped, ROWS),
}


def dense_and_graph(make, example, folder):
    model = randomise(make())
    return model, pk.trace(model, example), pk.export(model, example, folder / "dense.onnx")


@pytest.mark.parametrize("name", NARROWED)
def test_a_narrowed_export_is_the_real_export_of_the_slim_network(tmp_path, name):
    make, example = NARROWED[name]
    model, graph, dense = dense_and_graph(make, example, tmp_path)
    for seed in (1, 2):
        plan = pk.ChannelPlan.random(graph, 0.55, seed)
        assert not plan.is_dense
        narrow = narrow_onnx(dense, plan, tmp_path / "narrow.onnx")
        assert narrow is not None
        assert narrow.input_shapes == dense.input_shapes
        real = pk.export(pk.slim(model, plan), example, tmp_path / "real.onnx")

        left, right = onnx.load(narrow.path).graph, onnx.load(real.path).graph
        assert [n.op_type for n in left.node] == [n.op_type for n in right.node]
        # the same weights already, for they are cut from the same: what is left is the graph
        given, expected = run(real.path)
        found = run(narrow.path, **given)[1]
        assert all(relative(e, f) < 1e-4 for e, f in zip(expected, found, strict=True))

        # other weights, of the real one's shapes, fit and give the same again
        rng = np.random.default_rng(seed)
        shared = {t.name: t for t in left.initializer}
        assert any(t.name in shared for t in right.initializer)
        for tensor in right.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and "." in tensor.name:
                assert tensor.dims == shared[tensor.name].dims
                noise = rng.uniform(0.1, 0.3, tensor.dims).astype(np.float32)
                for each in (tensor, shared[tensor.name]):
                    each.CopyFrom(numpy_helper.from_array(noise, tensor.name))
        for part, path in ((left, "left.onnx"), (right, "right.onnx")):
            whole = onnx.load(narrow.path)
            whole.graph.CopyFrom(part)
            onnx.save(whole, tmp_path / path)
        expected = run(tmp_path / "right.onnx", **given)[1]
        found = run(tmp_path / "left.onnx", **given)[1]
        assert all(relative(e, f) < 1e-4 for e, f in zip(expected, found, strict=True))


TOKENS = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
DECLINED = {
    "linear layers whose weights lost their names": (Tokens, TOKENS),
    "and their biases": (lambda: Tokens(bias=False), TOKENS),
    "a reshape that is no flatten": (NamedWidth, image()),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_sure_is_declined(tmp_path, name):
    make, example = DECLINED[name]
    _, graph, dense = dense_and_graph(make, example, tmp_path)
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)
    assert narrow_onnx(dense, plan, tmp_path / "narrow.onnx") is None
    assert [p.name for p in tmp_path.iterdir()] == ["dense.onnx"]


def test_damaged_graphs_are_declined(tmp_path):
    """Take away, one at a time, what the cut relies on."""
    _, graph, dense = dense_and_graph(Residual, image(), tmp_path)
    plan = pk.ChannelPlan.random(graph, 0.5, seed=1)

    def declined(change):
        broken = onnx.load(dense.path)
        change(broken.graph)
        onnx.save(broken, tmp_path / "broken.onnx")
        artifact = pk.Artifact.of_file(tmp_path / "broken.onnx", input_shapes=dense.input_shapes)
        return narrow_onnx(artifact, plan, tmp_path / "narrow.onnx") is None

    def rename(old, new):
        def change(graph):
            for tensor in graph.initializer:
                tensor.name = new if tensor.name == old else tensor.name
            for node in graph.node:
                for i, name in enumerate(node.input):
                    node.input[i] = new if name == old else name

        return change

    def unknown_operator(graph):
        next(n for n in graph.node if n.op_type == "Relu").op_type = "Sign"

    assert not declined(lambda graph: None)
    assert declined(rename("conv1.weight", "val_99"))
    assert declined(rename("conv1.weight_bias", "conv1.other"))
    assert declined(rename("conv1.weight_bias", "val_98"))
    assert declined(unknown_operator)
    assert declined(lambda graph: graph.value_info.pop(len(graph.value_info) - 1) and None)
