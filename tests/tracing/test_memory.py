"""Memory of weights and activations: counted by hand, and against slim networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import zoo
from support.checking import ATTENTIONS, traced, traced_net
from support.nets import Concat, Flatten, Residual, image
from support.random_nets import (
    build,
    example,
    random_recipe,
)

MAP = 8 * 8 * 4
"""Bytes of one channel of the tiny networks' full maps."""


def test_a_residual_stream_is_alive_beside_the_block():
    graph = traced_net(Residual())
    # conv2 reads 8 channels and writes 8, while the 8 of the stream wait
    assert graph.peak({}).bytes == 3 * 8 * MAP
    assert graph.peak({"stem": 4, "conv1": 2}).bytes == (4 + 2 + 4) * MAP
    # and when the block is narrow, the input and the stem's output
    assert graph.peak({"stem": 1, "conv1": 1}).bytes == (3 + 1) * MAP


def test_a_concatenation_takes_its_inputs_and_itself():
    graph = traced_net(Concat())
    assert graph.peak({}).bytes == (8 + 6 + 14) * MAP
    assert graph.peak({"a": 2, "b": 3}).bytes == (2 + 3 + 5) * MAP
    assert graph.peak({"a": 1, "b": 1, "c": 5}).bytes == (2 + 5) * MAP


def test_norms_activations_and_views_take_nothing_of_their_own():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 5))
    dressed = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8), nn.Hardswish()),
        *(nn.Dropout(), nn.Flatten(), nn.Linear(8 * 64, 5), nn.ReLU()),
    )
    assert traced_net(plain).peak({}) == traced_net(dressed).peak({})
    assert traced_net(plain).peak({"0": 3}).bytes == (3 + 3) * MAP


def test_weights_are_four_bytes_each():
    net = Flatten()
    graph = traced_net(net)
    weights = sum(p.numel() for p in net.parameters())
    assert graph.memory({}) == 4 * weights + graph.peak({}).bytes


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_grow_with_the_batch(batch):
    graph = pk.trace(Residual().eval(), image(batch))
    assert graph.peak({"stem": 4}).bytes == batch * traced_net(Residual()).peak({"stem": 4}).bytes


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "vgg11_bn", "wrn22_2"])
def test_a_slim_network_needs_what_was_predicted(name):
    model, given = zoo.build(name).eval(), torch.zeros(2, 3, 16, 16)
    graph = pk.trace(model, given)
    for seed in range(3):
        plan = pk.ChannelPlan.random(graph, keep=0.5, seed=seed)
        again = pk.trace(pk.slim(model, plan), given, validate=False)
        assert again.memory({}) == graph.memory(plan.widths)
        assert again.peak({}) == graph.peak(plan.widths)


WITHOUT = {*ATTENTIONS, "maxout"}
"""Of attentions PyTorch takes other kernels at other widths."""


@pytest.mark.parametrize("seed", [s for s in range(60) if not random_recipe(s).kinds & WITHOUT])
def test_whatever_network(seed):
    recipe = random_recipe(seed)
    graph, model = traced(recipe), build(recipe)
    plan = pk.ChannelPlan.random(graph, keep=0.6, seed=seed)
    again = pk.trace(pk.slim(model, plan), example(recipe), validate=False)
    assert again.peak({}).bytes == graph.peak(plan.widths).bytes
