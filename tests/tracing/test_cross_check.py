"""Channels that go together, as torch-pruning's dependency graph has them, where it is right."""

from __future__ import annotations

import pytest
import timm
import torch
import torch_pruning
import torchvision
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.core.role import IN

NETS = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "resnet50": lambda: torchvision.models.resnet50(),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(),
    "densenet121": lambda: torchvision.models.densenet121(),
    "vgg11_bn": lambda: torchvision.models.vgg11_bn(),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(),
    "efficientnet_b0": lambda: torchvision.models.efficientnet_b0(),
    "repvgg_a0": lambda: timm.create_model("repvgg_a0"),
    "zoo resnet20": lambda: zoo.resnet20_w32(10, 3),
}
PER_GROUP = 2


def ours(group, channel):
    """(module, side, position) of one channel."""
    found = set()
    for member in group.members:
        side = "in" if member.role == IN else "out"
        found |= {(member.module, side, int(p)) for p in member.index[channel]}
    return found


def theirs(graph, names, root, position):
    """The same from torch-pruning, starting at one channel that ``root`` writes."""
    prune = (
        torch_pruning.prune_depthwise_conv_out_channels
        if getattr(root, "groups", 1) > 1
        else torch_pruning.prune_linear_out_channels
        if isinstance(root, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    found = set()
    for dependency, indices in graph.get_pruning_group(root, prune, [position]):
        module = dependency.target.module
        if module not in names:
            continue
        writes = graph.is_out_channel_pruning_fn(dependency.handler)
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        side = "out" if writes or depthwise or norm else "in"
        found |= {(names[module], side, index) for index in indices}
    return found


@pytest.mark.parametrize("name", NETS)
def test_what_goes_together_is_what_torch_pruning_says(name):
    torch.manual_seed(0)
    model = NETS[name]().eval()
    image = torch.randn(1, 3, 64, 64)
    groups = [g for g in pk.trace(model, image, validate=False).groups if g.prunable]
    graph = torch_pruning.DependencyGraph().build_dependency(model, image)
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    assert len(groups) >= 5
    for group in groups:
        writer = next(m for m in group.members if m.role.is_output)
        for channel in range(0, group.size, max(1, group.size // PER_GROUP)):
            position = int(writer.index[channel][0])
            expected = theirs(graph, names, modules[writer.module], position)
            assert ours(group, channel) == expected, (group.id, channel)
