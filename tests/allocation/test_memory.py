"""Memory as a budget: the best plan within it, beside others, out of reach."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import prunekit as pk
from prunekit.allocation import allocate
from prunekit.allocation.costs import MacsCost
from prunekit.core.scores import Scores
from prunekit.support.errors import InfeasibleError, UsageError
from support.checking import traced_net
from support.commands import ON_FAKE, Says
from support.nets import Concat, Depthwise, Flatten, Residual, SqueezeExcite


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
