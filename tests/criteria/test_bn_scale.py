"""Scales of norms, coupled, in series, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from support.nets import (
    Depthwise,
    Plain,
    Residual,
    image,
    randomise,
)
from support.scoring import FIRST, SECOND, channels_of, linear, norm, scored


def test_bn_scale_is_gamma_and_coupled_norms_are_reduced():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    one, two = model.bn.weight.detach().abs().numpy(), model.bn2.weight.detach().abs().numpy()
    expected = {"mean": (one + two) / 2, "sum": one + two, "max": np.maximum(one, two)}
    for reduce, values in expected.items():
        found = pk.score(model, graph, pk.BNScale(reduce=reduce)).by_group
        assert found["stem"] == pytest.approx(values, rel=1e-6)
        assert found["conv1"] == pytest.approx(model.bn1.weight.detach().abs().numpy())


def test_bn_scale_behind_a_depthwise_layer_is_the_last_norms():
    model = randomise(Depthwise())
    graph = pk.trace(model, image())
    for reduce in ("mean", "sum", "max"):
        found = pk.score(model, graph, pk.BNScale(reduce=reduce)).by_group["conv"]
        assert found == pytest.approx(model.bn1.weight.detach().abs().numpy())


def test_norms_in_series_and_side_by_side_count_once_in_a_sum():
    """Two layers and a depthwise one, each with a norm: two of the three are worth counting."""
    names = ["a", "n1", "b", "n2", "depth", "n3"]
    group = channels_of(*names, roles=["out", "both", "out", "both", "both", "both"])
    modules = {"a": linear(FIRST), "b": linear(SECOND), "depth": nn.Conv1d(3, 3, 1, groups=3)}
    modules |= {"n1": norm([1.0, 2, 3]), "n2": norm([4.0, 5, 6]), "n3": norm([-7.0, 8, 9])}
    for reduce, expected in (("sum", [8, 10, 12]), ("mean", [4, 5, 6]), ("max", [7, 8, 9])):
        assert scored(pk.BNScale(reduce=reduce), group, modules) == pytest.approx(expected)
    for name in ("n1", "n2", "n3"):
        for parameter in modules[name].parameters():
            parameter.grad = torch.ones(3)  # the biases are zero
    assert scored(pk.Taylor(), group, modules) == pytest.approx(np.abs([-2, 15, 18]) * 2 / 3)


def test_bn_scale_without_a_norm_is_filter_norms_at_the_gammas_level():
    model = randomise(Depthwise())
    graph = pk.trace(model, image())
    with torch.no_grad():
        model.bn.weight[:4] = 0  # as removed channels are, which are not counted
    gammas = torch.cat([model.bn.weight, model.bn1.weight]).detach().abs()
    found = pk.score(model, graph, pk.BNScale()).by_group["point"]
    length = model.point.weight.detach().flatten(1).norm(dim=1)
    level = gammas[gammas > 0].mean()
    assert found == pytest.approx((length / length.mean() * level).numpy(), rel=1e-6)
    plain = randomise(Plain())
    found = pk.score(plain, pk.trace(plain, image()), pk.BNScale()).by_group
    assert all(values.mean() == pytest.approx(1) for values in found.values())


def test_a_norm_without_a_scale_is_no_scale():
    group = channels_of("a", "bn", roles=["out", "both"])
    modules = {"a": linear(FIRST), "bn": nn.BatchNorm1d(3, affine=False)}
    assert scored(pk.BNScale(), group, modules) == pytest.approx(np.array([5, 1, 2]) * 3 / 8)
