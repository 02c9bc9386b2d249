"""Random scores: the same in every process, and a function of seed, group and weights alone."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import prunekit as pk
from support.nets import (
    Residual,
    image,
    randomise,
)
from support.scoring import FIRST, SECOND, channels_of, linear, scored

DRAW = """
import torch
from torch import nn
import prunekit as pk

def draw(seed):
    torch.manual_seed(seed)  # must not matter
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + i)
    graph = pk.trace(net, torch.zeros(1, 3, 4, 4))
    return pk.score(net, graph, pk.Random()).by_group["0"].tolist()
"""


def test_random_is_the_same_in_every_process():
    other = subprocess.run(
        [sys.executable, "-c", f"{DRAW}\nprint(draw(1))"],
        capture_output=True,
        text=True,
        check=True,
    )
    scope = {}
    exec(DRAW, scope)
    here = scope["draw"](2)
    assert other.stdout.strip() == str(here)
    assert len(set(here)) == 6


def test_random_changes_with_seed_group_and_weights_only():
    model = randomise(Residual())
    graph = pk.trace(model, image())

    def draw(subject=model, seed=0):
        return pk.score(subject, graph, pk.Random(seed)).by_group

    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    torch.rand(3)
    again = draw(copy.deepcopy(model))
    assert all((again[g] == first[g]).all() for g in first)
    assert not (first["stem"] == first["conv1"]).any()
    assert not (draw(seed=1)["conv1"] == first["conv1"]).any()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1
    changed = draw()
    assert not (changed["conv1"] == first["conv1"]).any()
    assert (changed["stem"] == first["stem"]).all()


def test_two_groups_of_one_layer_draw_for_themselves():
    layer = linear(FIRST + SECOND)
    first = channels_of("a")
    second = replace(channels_of("a", positions=[[3], [4], [5]]), id="a#2")
    found = [scored(pk.Random(), group, {"a": layer}) for group in (first, second)]
    assert found[1][1] == 0  # its filter is empty
    assert not (found[0] == found[1]).any()


def test_random_is_uniform():
    group = channels_of("a", positions=np.arange(4000)[:, None])
    layer = nn.Linear(2, 4000)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1, 8001).view(4000, 2))
    found = scored(pk.Random(), group, {"a": layer})
    counts, _ = np.histogram(found, bins=10, range=(0, 1))
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 100  # five standard deviations
