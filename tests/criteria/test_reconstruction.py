"""Scores without labels: by what layers read, alone and with all others making up for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.support.errors import UsageError
from support.nets import randomise


def network() -> tuple[nn.Module, pk.ChannelGraph]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    return net, pk.trace(net, torch.zeros(1, 3, 6, 6))


def batches(count: int = 3, shape: tuple[int, ...] = (3, 6, 6)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, *shape, generator=generator) for _ in range(count)]


def test_activation_is_the_share_of_variance_that_a_channel_gives():
    net, graph = network()
    scores = pk.score(net, graph, pk.Activation(), batches=batches())
    with torch.no_grad():
        read = torch.cat([net[1](net[0](x)) for x in batches()]).double()
    variance = read.movedim(1, -1).flatten(0, 2).var(0, correction=0)
    share = net[2].weight.detach().double().square().sum((0, 2, 3)) * variance
    np.testing.assert_allclose(scores.by_group["0"], (share / share.sum()).numpy(), rtol=1e-6)
    assert (scores.criterion, scores.batches) == ("activation", 3)


def test_constant_and_dead_channels_are_worth_nothing():
    net, graph = network()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 3  # constant
        net[2].weight[:, 4] = 0  # read by weights of zero
    for criterion in (pk.Activation(), pk.Reconstruction()):
        scores = pk.score(net, graph, criterion, batches=batches()).by_group["0"]
        assert np.sort(scores)[1] < 1e-9 < np.sort(scores)[2], criterion.name
        assert set(np.argsort(scores)[:2]) == {1, 4}


def test_of_two_that_are_alike_one_is_worth_nothing_and_the_other_for_both():
    """What tells reconstruction from activation: the second of a pair cannot be made up for."""
    net, graph = network()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[2], net[0].bias[2]
    alone = pk.score(net, graph, pk.Activation(), batches=batches()).by_group["0"]
    scores = pk.score(net, graph, pk.Reconstruction(), batches=batches()).by_group["0"]
    low, high = sorted((scores[2], scores[3]))
    assert low < 0.01 * min(alone[2], alone[3])
    assert high > min(alone[2], alone[3])


def test_scores_add_up_to_the_error_that_least_squares_leaves():
    net, graph = network()
    data = batches(8)
    scores = pk.score(net, graph, pk.Reconstruction(), batches=data)
    plan = pk.ChannelPlan.from_widths(graph, {"0": 3}, scores)
    small = pk.slim(net, plan)
    fixed = pk.repair(net, small, plan, [torch.cat(data)], method="least-squares").network
    inputs = torch.cat(data)
    with torch.no_grad():
        right = net(inputs)
        left = (fixed(inputs) - right).square().sum()
        read = net[1](net[0](inputs)).double()
    spread = read.movedim(1, -1).flatten(0, 2).var(0, correction=0)
    whole = (net[2].weight.detach().double().square().sum((0, 2, 3)) * spread).sum()
    share = float(left / len(read.movedim(1, -1).flatten(0, 2)) / whole)
    gone = np.sort(scores.by_group["0"])[:3].sum()
    assert share == pytest.approx(gone, rel=0.1)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "vgg11_bn"])
@pytest.mark.parametrize("criterion", [pk.Activation(), pk.Reconstruction()], ids=lambda c: c.name)
def test_every_group_of_a_network_has_scores(name: str, criterion):
    net = randomise(zoo.build(name, num_classes=4, in_channels=3)).eval()
    graph = pk.trace(net, torch.zeros(1, 3, 16, 16))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    scores = pk.score(net, graph, criterion, batches=[torch.randn(8, 3, 16, 16)] * 2)
    assert set(scores.by_group) == {group.id for group in graph.groups if group.prunable}
    assert all((values >= 0).all() for values in scores.by_group.values())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_without_inputs_there_are_no_scores():
    net, graph = network()
    with pytest.raises(UsageError, match="criterion 'activation' needs inputs: give `batches` of"):
        pk.score(net, graph, pk.Activation())
    with pytest.raises(UsageError, match="no batch was scored"):
        pk.score(net, graph, pk.Reconstruction(), batches=[])
    with pytest.raises(UsageError, match="criterion reconstruction needs inputs; score with"):
        pk.Reconstruction().channel_scores(graph.groups[0], {})
