"""Memory of weights and activations: counted by hand, against slim networks, as a budget."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ON_FAKE, Says
from core_nets import Concat, Depthwise, Flatten, Residual, SqueezeExcite, image
from random_nets import example, random_recipe
from test_random_nets import ATTENTIONS, build, traced
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.allocation import allocate
from prunekit.allocation.costs import MacsCost
from prunekit.core.scores import Scores
from prunekit.support.errors import InfeasibleError, UsageError

MAP = 8 * 8 * 4
"""Bytes of one channel of the tiny networks' full maps."""


def traced_net(net):
    return pk.trace(net.eval(), image())


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


def random_scores(graph, seed):
    rng = np.random.default_rng(seed)
    return Scores({g.id: rng.random(g.size) for g in graph.groups if g.prunable}, "random")


def best_within(graph, scores, fits):
    """The most value of all widths that fit, by trying every one."""
    groups = [g for g in graph.groups if g.prunable]
    sums = {g.id: np.r_[0, np.cumsum(-np.sort(-scores.by_group[g.id]))] for g in groups}
    found = -np.inf
    for widths in itertools.product(*(range(1, g.size + 1) for g in groups)):
        chosen = dict(zip((g.id for g in groups), widths, strict=True))
        if fits(chosen):
            found = max(found, sum(float(sums[g][w]) for g, w in chosen.items()))
    return found / sum(float(s[-1]) for s in sums.values())


NETS = [Residual, Concat, SqueezeExcite, Depthwise]


@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
@pytest.mark.parametrize("make", NETS)
def test_the_best_plan_within_a_memory(make, share):
    graph = traced_net(make())
    scores = random_scores(graph, 1)
    limit = share * graph.memory({})
    found = allocate(graph, scores, None, pk.Budget.parse(f"memory={100 * share}%"))
    assert found.cost == graph.memory(found.widths) <= limit
    assert found.dense_cost == graph.memory({})
    assert found.unit == "bytes"
    best = best_within(graph, scores, lambda widths: graph.memory(widths) <= limit)
    assert best * (1 - found.gap) - 1e-9 <= found.value <= best + 1e-9


@pytest.mark.parametrize("make", NETS[:3])
def test_memory_beside_another_budget(make):
    graph = traced_net(make())
    scores = random_scores(graph, 2)
    memory, macs = 0.7 * graph.memory({}), 0.5 * graph.macs({})
    found = allocate(
        *(graph, scores, MacsCost(), pk.Budget.parse("macs=50%")),
        limits=[pk.Budget.parse("memory=70%")],
    )
    assert graph.memory(found.widths) <= memory
    assert graph.macs(found.widths) <= macs
    best = best_within(graph, scores, lambda w: graph.memory(w) <= memory and graph.macs(w) <= macs)
    assert best * (1 - found.gap) - 1e-9 <= found.value <= best + 1e-9


def test_memory_out_of_reach_is_said_with_what_is_in_reach():
    graph = traced_net(Residual())
    least = graph.memory({g.id: 1 for g in graph.groups if g.prunable})
    with pytest.raises(InfeasibleError, match="is below what is reachable") as caught:
        allocate(graph, random_scores(graph, 0), None, pk.Budget.parse("memory=900B"))
    assert f"the smallest plan costs {least:.4g} bytes" in str(caught.value)


def test_another_solver_takes_it_as_long_as_one_step_matters():
    graph = traced_net(Flatten())
    found = allocate(
        graph, random_scores(graph, 3), None, pk.Budget.parse("memory=60%"), pk.Knapsack()
    )
    assert graph.memory(found.widths) <= 0.6 * graph.memory({})
    with pytest.raises(UsageError, match="takes one budget only"):
        allocate(
            *(graph, random_scores(graph, 3), None, pk.Budget.parse("macs=60%"), pk.Knapsack()),
            limits=[pk.Budget.parse("memory=60%")],
        )


def test_a_limit_of_memory_on_the_command_line(prunekit: Says, home: Path):
    flags = ("prune", "net.py:medium", *ON_FAKE, "--epochs", 0, "--target-latency", "80%")
    status, _, _ = prunekit(*flags, "--limit", "memory=45%", "-o", "lean", "--profile-nets", 4)
    assert status == 0
    report = json.loads((home / "lean" / "report.json").read_text())
    memory = report["memory"]
    assert memory["pruned"] <= 0.45 * memory["dense"]
    status, out, _ = prunekit("report", "lean")
    assert "| memory (computed) |" in out
