"""Random networks, and the slim one against the masked one."""

from __future__ import annotations

import copy

import torch
from torch import nn

import prunekit as pk
from support.nets import image


def relative(expected, found):
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))


def physical(module, side):
    return getattr(module, f"{side}_{'features' if isinstance(module, nn.Linear) else 'channels'}")


def check_slim(model, graph, plan):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = pk.slim(model, plan)
    masked = pk.mask_(copy.deepcopy(model), plan)
    with torch.no_grad():
        given_input = image(2, size=16)
        assert relative(masked(given_input), small(given_input)) <= 1e-5
        again = pk.slim(pk.mask_(masked, plan), plan)  # masks upon masks, as training sets them
        assert relative(masked(given_input), small(given_input)) <= 1e-5
        assert relative(again(given_input), small(given_input)) <= 1e-5

    modules = dict(small.named_modules())
    for layer in graph.layers:
        for side in ("in", "out"):
            assert physical(modules[layer.name], side) == layer.width(side, plan.widths)
    assert list(small.state_dict()) == list(model.state_dict())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    weights = sum(
        m.weight.numel() + (m.bias is not None) * m.weight.shape[0]
        for m in modules.values()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    )
    predicted = sum(
        layer.params(layer.width("in", plan.widths), layer.width("out", plan.widths))
        for layer in graph.layers
    )
    assert weights == predicted
