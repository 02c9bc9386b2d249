"""Magnitude: the mean norm of the coupled filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import prunekit as pk
from prunekit.support.registry import criteria
from support.nets import (
    Plain,
    Residual,
    image,
    randomise,
)
from support.scoring import channels_of, linear, scored


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_mean_norm_of_the_coupled_filters(p):
    model = randomise(Residual())
    graph = pk.trace(model, image())
    found = pk.score(model, graph, pk.Magnitude(p=p, normalize="none")).by_group
    for group, convs in (("conv1", [model.conv1]), ("stem", [model.stem, model.conv2])):
        rows = [c.weight.detach().flatten(1).norm(p=p, dim=1) for c in convs]
        assert found[group] == pytest.approx(torch.stack(rows).mean(0).numpy(), rel=1e-6)
    normal = pk.score(model, graph, pk.Magnitude(p=p)).by_group["conv1"]
    assert normal.mean() == pytest.approx(1)
    assert normal == pytest.approx(found["conv1"] / found["conv1"].mean(), rel=1e-6)


def test_magnitude_does_not_read_what_consumes():
    model = randomise(Plain())
    graph = pk.trace(model, image())
    before = pk.score(model, graph, pk.Magnitude(normalize="none")).by_group["c1"]
    with torch.no_grad():
        model.c2.weight.mul_(100)
    after = pk.score(model, graph, pk.Magnitude(normalize="none")).by_group["c1"]
    assert (before == after).all()


@pytest.mark.parametrize("name", ["bn_scale", "lamp", "magnitude", "magnitude_l1"])
def test_a_larger_filter_ranks_above_a_smaller_one(name):
    sizes = [0.3, 2.0, 0.1, 1.0, 0.7]
    layer = linear([[s, -s, s / 2] for s in sizes])
    group = channels_of("a", positions=np.arange(5)[:, None])
    found = scored(criteria.get(name)(), group, {"a": layer})
    assert list(np.argsort(found)) == list(np.argsort(sizes))
