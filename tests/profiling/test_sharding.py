"""Shards: each network in one, together the whole profile."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.latency import merge
from prunekit.profiling import harvest
from prunekit.profiling.sharding import parse_shard, share_of
from prunekit.support.errors import UsageError
from support.tables import EXAMPLE, FAKE, QUICK, predicted, profile, widths


def test_shards_together_are_the_whole_profile(small_net, small_graph, device):
    whole = profile(small_net, small_graph)
    shards = [profile(small_net, small_graph, (number, 3)) for number in (1, 2, 3)]
    assert {s.networks[0].end_to_end_us for s in shards} == {whole.networks[0].end_to_end_us}
    joined = merge(shards)
    assert widths(joined) == widths(whole)
    assert len(joined.networks) == len(whole.networks) + 2  # the dense one, three times
    assert predicted(joined, small_graph) == pytest.approx(predicted(whole, small_graph), rel=1e-9)
    assert joined.calibration.nets == whole.calibration.nets
    assert joined.calibration.mape == pytest.approx(whole.calibration.mape, rel=1e-6)
    (profiled,) = {shard.partition("/")[2] for shard in joined.protocol.shards}
    assert profiled.startswith("3 of net (")
    assert joined.protocol.shards == tuple(f"{number}/{profiled}" for number in (1, 2, 3))
    assert (joined.protocol.missing_shards, whole.protocol.missing_shards) == ((), ())
    assert merge([shards[2], shards[0], whole]).protocol.missing_shards == (f"2/{profiled}",)


def test_shards_of_two_profiles_do_not_make_up_for_each_other(small_net, small_graph, device):
    first = profile(small_net, small_graph, (1, 2))
    plan = replace(QUICK, shard=(2, 2), seed=1)
    other = harvest(small_net, small_graph, EXAMPLE, FAKE, plan=plan, name="net")
    here, there = (table.protocol.shards[0].partition("/")[2] for table in (first, other))
    missing = merge([first, other]).protocol.missing_shards
    assert here != there
    assert {*missing} == {f"2/{here}", f"1/{there}"}


def test_shards_with_noise_predict_within_the_noise(small_net, small_graph, device):
    device(noise=0.02)
    joined = merge([profile(small_net, small_graph, (number, 2)) for number in (1, 2)])
    device()
    whole = profile(small_net, small_graph)
    expected = predicted(whole, small_graph)
    error = np.abs(predicted(joined, small_graph) / expected - 1)
    assert 0 < error[expected > 0.12 * expected[0]].max() < 0.035  # tiny ones do not calibrate


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(1, 12))
def test_every_network_is_in_one_shard_and_the_first_in_all(nets, count):
    if count > nets - 1:
        with pytest.raises(UsageError, match=f"only {nets - 1} to share out; give --nets "):
            share_of(range(nets), (1, count))
        return
    shares = [share_of(range(nets), (number, count)) for number in range(1, count + 1)]
    assert all(share[0] == 0 and len(share) > 1 for share in shares)
    assert sorted(one for share in shares for one in share[1:]) == list(range(1, nets))


def test_torchrun_gives_the_shard_and_the_gpu(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="--shard auto needs RANK and WORLD_SIZE"):
        parse_shard("auto")
    for visible, seen in (("", "1"), ("4,6", "6"), ("4", "4")):
        for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert parse_shard("auto") == (6, 8)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
        assert "WORLD_SIZE" not in os.environ  # by itself from here on
