"""Rounds: their speed, unsteadiness, and what is typical."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.profiling import (
    HarvestPlan,
    harvest,
    sample_plans,
)
from prunekit.profiling.measuring import Rounds
from prunekit.profiling.rounds import Round, end_to_end_us, speeds, typical_us
from prunekit.runtimes.fake import Fake, FakeEngine
from support.devices import Be, predicted, truth
from support.tables import EXAMPLE, FAKE


def a_round(nets: list[int], end_to_end_ms: list[list[float]]) -> Round:
    rest = {"disturbed": 0.0, "layers_us": [], "added": [], "seconds": 0.0}
    return Round(nets=nets, end_to_end_ms=end_to_end_ms, **rest)


def test_the_speed_of_rounds_is_told_from_that_of_networks():
    level, slow = np.array([3.0, 1.0, 0.2, 2.0]), np.array([1.0, 1.3, 0.9, 1.0, 1.6])
    members = [(0, 1), (0, 1, 2), (0, 2, 3), (0, 3), (0, 1, 3)]
    rows = [
        a_round(list(nets), [[level[n] * slow[r]] * 4 for n in nets])
        for r, nets in enumerate(members)
    ]
    assert speeds(rows) == pytest.approx(slow / np.median(slow), rel=1e-5)
    for number in range(4):
        found = end_to_end_us(rows, speeds(rows), number)
        usual = 1e3 * level[number] * np.median(slow)
        assert np.concatenate(found) == pytest.approx(usual, rel=1e-5)
        assert typical_us(found) == pytest.approx(usual, rel=1e-5)


def test_what_a_network_takes_does_not_fall_with_the_number_of_its_rounds():
    """Of places in memory, each a few percent faster or slower, the middle one is told."""
    rng = np.random.default_rng(0)
    places = 100 * np.exp(0.02 * rng.standard_normal(400))

    def told(count: int) -> float:
        rounds = places.reshape(-1, count)
        return float(np.mean([typical_us([np.full(9, p) for p in taken]) for taken in rounds]))

    assert told(8) == pytest.approx(told(1), rel=2e-3)


class Throttling(Fake):
    """Half as fast from the third round on."""

    def load(self, artifact: Artifact, target: Target) -> FakeEngine:
        engine = super().load(artifact, target)
        usual = engine.time
        engine.time = lambda runs: [throttled[0] * ms for ms in usual(runs)]
        return engine


throttled = [1.0]


def test_a_device_that_throttles_is_told_and_widens_the_error(
    small_net, small_graph, device: Be, monkeypatch, capsys
):
    plan = HarvestPlan(nets=6, rounds=4, turns=1, active=False)
    steady = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    device(Throttling)
    run = Rounds.run

    def slower(rounds: Rounds, number: int, nets):
        throttled[0] = 2.0 if number >= 2 and len(nets) < 20 else 1.0
        return run(rounds, number, nets)

    monkeypatch.setattr(Rounds, "run", slower)
    capsys.readouterr()
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.drift == pytest.approx(1.0, abs=0.02)
    assert "note: the device's speed changed by 100% from round to round" in capsys.readouterr().err
    for plan in sample_plans(small_graph, 8, 5, seed=3):
        widths = plan.widths
        assert table.half_width(small_graph, widths) >= 0.125
        assert table.half_width(small_graph, widths) > steady.half_width(small_graph, widths) + 0.1


def test_intervals_hold_most_networks_and_are_no_wider_than_they_need(
    small_net, small_graph, device: Be, tmp_path: Path
):
    device(noise=0.03)
    plans = [
        pk.ChannelPlan.random(small_graph, k, s, 8) for s in range(12) for k in (0.4, 0.6, 0.8)
    ]
    table = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=HarvestPlan(rounds=2, turns=1))
    # the lower half of noisy times is below their median: a matter of scale alone
    real = truth(small_graph, small_net, tmp_path, plans)
    ratio = predicted(table, small_graph, plans) / real
    error = np.abs(ratio / np.median(ratio) - 1)
    half = np.array([table.half_width(small_graph, plan.widths) for plan in plans])
    assert np.mean(error <= half) >= 0.85
    assert np.median(half) < 8 * max(np.median(error), 0.002)


def test_a_round_that_only_the_dense_network_knows_is_told(small_net, small_graph):
    """With one round per network, every later round has two networks of its own."""
    rows = [
        a_round([0, 1, 2], [[4.0], [2.0], [1.0]]),
        a_round([0, 3, 4], [[4.8], [2.4], [1.2]]),
        a_round([0, 5, 6], [[4.0], [2.0], [1.0]]),
    ]
    assert speeds(rows) == pytest.approx([1.0, 1.2, 1.0])
