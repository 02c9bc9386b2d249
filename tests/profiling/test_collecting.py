"""When a profile ends, and how often each network is measured."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np

from prunekit.profiling import (
    HarvestPlan,
    ProfileRequest,
    collecting,
    harvest,
    measuring,
    sample_plans,
)
from prunekit.profiling.harvest import protocol
from prunekit.profiling.journal import Facts
from support.tables import EXAMPLE, FAKE


def test_the_target_error_ends_a_profile_early(small_net, small_graph):
    plan = HarvestPlan(nets=12, rounds=9, turns=1, target_error=0.02)
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.stopped == "error at most 2 %"
    assert table.protocol.rounds < 9
    assert table.calibration.mape <= 0.02


def test_the_time_ends_a_profile_after_the_least_rounds(small_net, small_graph):
    plan = HarvestPlan(nets=12, rounds=9, turns=1, max_seconds=0.0, min_rounds=2)
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.stopped == "0 s"
    assert table.protocol.rounds == 2
    assert len(table.networks) < 12


def test_no_round_begins_that_would_end_too_late(small_net, small_graph, monkeypatch):
    clock = itertools.count(0.0, 5.0)
    own = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(collecting, "time", own)
    wanted = HarvestPlan(nets=5, rounds=9, turns=1, max_seconds=58.0, active=False)
    plans = sample_plans(small_graph, 8, 5, seed=0)
    found = collecting.collect(
        ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, wanted), plans, 8, Facts()
    )
    assert found.stopped == "58 s"
    ends = [one.seconds for one in found.rounds]
    assert ends == [10.0, 20.0, 30.0, 40.0, 50.0]  # another one would end at 60 s


def test_networks_that_take_long_get_fewer_turns(small_net, small_graph, monkeypatch):
    wanted = HarvestPlan(nets=2, rounds=1, turns=5, active=False)
    plans = sample_plans(small_graph, 8, 2, seed=0)

    def runs() -> tuple[int, int]:
        found = collecting.collect(
            ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, wanted), plans, 8, Facts()
        )
        samples = found.rounds[0].end_to_end_ms[0]
        return len(samples), protocol("harvest", found, wanted, np.ones(1)).turns

    monkeypatch.setattr(measuring, "switch_counter", lambda _: lambda: 0)  # no run is left out
    usual, turns = runs()
    assert turns == 5
    monkeypatch.setattr(measuring, "LONG_MS", 0.0)
    fewer, turns = runs()
    assert turns == 3
    assert fewer * 5 == usual * 3
