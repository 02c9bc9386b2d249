"""Networks and sessions of several machines brought together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import prunekit as pk
from prunekit.latency import merge
from prunekit.latency.pooling import structures
from prunekit.profiling import harvest
from support.tables import FAKE, QUICK, predicted, profile


def test_a_model_at_two_inputs_has_two_dense_networks(small_net, small_graph, device):
    """They have one name, and all else is relative to them."""
    wide = torch.zeros(1, 3, 48, 48)
    small = profile(small_net, small_graph)
    device(slower=5.0)
    large = harvest(small_net, pk.trace(small_net, wide), wide, FAKE, plan=QUICK, name="net")
    renamed = replace(large, networks=tuple(replace(n, model="other") for n in large.networks))
    joined, apart = merge([small, large]), merge([small, renamed])
    assert joined.calibration.mape == pytest.approx(apart.calibration.mape, rel=1e-6)
    assert joined.calibration.nets == small.calibration.nets + large.calibration.nets


def test_a_slower_machine_is_brought_to_the_speed_of_the_others(small_net, small_graph, device):
    """Its ratios to its own dense network are what it adds."""
    whole = profile(small_net, small_graph)
    shards = []
    for number, slower in ((1, 1.0), (2, 1.15), (3, 1.0)):
        device(slower=slower)
        shards.append(profile(small_net, small_graph, (number, 3)))
    joined = merge(shards)
    assert predicted(joined, small_graph) == pytest.approx(predicted(whole, small_graph), rel=2e-3)
    assert joined.calibration.worst == pytest.approx(whole.calibration.worst, abs=2e-3)
    raw = [small_net.end_to_end_us for small_net in joined.networks if small_net.kept == 1]
    assert max(raw) == pytest.approx(1.15 * min(raw), rel=1e-3)  # kept as it was measured
    as_one = replace(joined, networks=tuple(replace(n, session="") for n in joined.networks))
    assert as_one.calibrated().calibration.worst > 0.05


def test_a_network_that_two_sessions_measured_counts_once(small_net, small_graph, device):
    """Or its twin would give away the one that is left out."""
    first = profile(small_net, small_graph)
    device(slower=1.1)
    second = profile(small_net, small_graph)
    joined = merge([first, second])
    entries, networks = joined.pooled
    assert len(joined.networks) == 2 * len(networks)
    assert len({*structures(entries, len(networks))}) == len(networks)
    assert networks[0].end_to_end_us == pytest.approx(
        1.05 * first.networks[0].end_to_end_us, rel=1e-4
    )
    assert networks[0].runs == first.networks[0].runs + second.networks[0].runs
    assert joined.calibration.nets == first.calibration.nets
