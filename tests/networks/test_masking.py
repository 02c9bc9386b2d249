"""What masks zero, also where weights are computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.core.plan import ChannelPlan
from support.nets import Concat, Depthwise, Flatten, Residual, conv, image, randomise
from support.slimming import check_slim


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_weights_that_are_computed_are_masked_too(keep):
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        *(norm(conv(3, 16, bias=True)), nn.ReLU()),
        *(norm(conv(16, 24, bias=True)), nn.SiLU()),
        *(norm(nn.Conv2d(24, 24, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )
    graph = pk.trace(model, image())
    assert [group.prunable for group in graph.groups] == [True, True, True, False]
    plan = pk.ChannelPlan.random(graph, keep, seed=1)
    before = copy.deepcopy(model)
    check_slim(model, graph, plan)
    masked = pk.mask_(pk.mask_(model, pk.ChannelPlan.random(graph, 0.9, seed=2)), plan)
    for name, gone in ((n, cut.out) for n, cut in plan.cuts.items() if cut.out):
        assert not masked.get_submodule(name).weight[list(gone)].any()
    assert len(masked[0].parametrizations.weight) == 2  # the norm and the last mask
    assert masked.state_dict().keys() == before.state_dict().keys()
    assert len(pk.slim(masked, plan)[0].parametrizations.weight) == 1


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(), image())


@pytest.mark.parametrize("make", [Residual, Depthwise, Concat, Flatten])
def test_masks_zero_what_slimming_removes(make):
    model = randomise(make())
    graph = pk.trace(model, image())
    plan = ChannelPlan.random(graph, 0.5, seed=2)
    small = pk.slim(model, plan)
    masked = pk.mask_(model, plan)
    for name, tensor in masked.named_parameters():
        kept = small.get_parameter(name)
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.PReLU):
            assert int((tensor != 0).sum()) == int((kept != 0).sum())
            assert torch.isclose(tensor.double().sum(), kept.double().sum(), atol=1e-6)
