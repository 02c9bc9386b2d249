"""Networks that a profile chooses: new, unsure, repeatable."""

from __future__ import annotations

import numpy as np

import prunekit as pk
from prunekit.profiling import (
    HarvestPlan,
    harvest,
    sample_plans,
)
from prunekit.profiling.choosing import choose
from support.devices import Be
from support.tables import EXAMPLE, FAKE


def test_chosen_networks_are_new_unsure_and_repeatable(small_net, small_graph, device: Be):
    device(noise=0.02)
    plan = HarvestPlan(nets=5, rounds=1, active=False)
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    plans = sample_plans(small_graph, 8, 5, seed=0)
    chosen = choose(small_graph, table, plans, 4, seed=0)
    assert [p.widths for p in choose(small_graph, table, plans, 4, seed=0)] == [
        p.widths for p in chosen
    ]
    widths = [tuple(p.widths.values()) for p in (*plans, *chosen)]
    assert len(set(widths)) == len(widths)
    random = [pk.ChannelPlan.random(small_graph, 0.6, seed, 8) for seed in range(40)]
    usual = np.mean([table.deviation(small_graph, p.widths) for p in random])
    assert table.deviation(small_graph, chosen[0].widths) > usual


def test_an_active_profile_measures_all_networks_as_often(small_net, small_graph):
    plan = HarvestPlan(nets=9, rounds=3, turns=1)
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    runs = [n.runs for n in table.networks]
    assert len(runs) == 9
    assert runs[0] > runs[1]  # the dense network is in every round
    assert table.protocol.rounds == 3 + 2  # two at a time after the first round
    assert table.protocol.stopped == "all rounds"


def test_a_model_too_entangled_to_allocate_is_profiled_all_the_same(
    small_net, small_graph, monkeypatch
):
    monkeypatch.setattr("prunekit.allocation.solvers.elimination.LARGEST_TABLE", 0)
    table = harvest(
        small_net, small_graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=7, rounds=1, turns=1)
    )
    assert len(table.networks) == 7
