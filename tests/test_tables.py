"""Latency tables joined, shared out, compared, drawn, moved to another device, written by one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import ON_FAKE, Says
from core_nets import Depthwise, conv
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph, LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample, diff, merge
from prunekit.latency.pooling import structures
from prunekit.latency.shipped import shipped_tables
from prunekit.latency.staircase import dearest, find_shapes, staircases
from prunekit.profiling import HarvestPlan, ProfileRequest, harvest, sample_plans, transfer
from prunekit.profiling.locking import locked
from prunekit.profiling.sharding import parse_shard, share_of
from prunekit.profiling.transferring import TRANSFER_NETS
from prunekit.runtimes.fake import Fake
from prunekit.support.errors import TableError, UsageError
from prunekit.support.files import dump_json

FAKE = Target("fake")
EXAMPLE = torch.zeros(1, 3, 16, 16)
QUICK = HarvestPlan(nets=9, rounds=1, turns=1, active=False)
FEW = HarvestPlan(nets=TRANSFER_NETS)


class Other(Fake):
    """The fake runtime on another device."""

    def environment(self, target: Target) -> Environment:
        return Environment(device_name="another fake", runtime_version="1")


class Small(torch.nn.Module):
    """A few shapes, one of them twice, one with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv(3, 32), conv(32, 64, stride=2)
        self.one, self.two, self.three = (conv(64, 64) for _ in range(3))
        self.last, self.fc = conv(64, 48, stride=2), torch.nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.first(x).relu()).relu()
        x = (x + self.three(self.two(self.one(x).relu()).relu())).relu()
        return self.fc(self.last(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Small().eval()


class Unwatched(Other):
    """No layer of it can be profiled."""

    def profiler(self, artifact: Artifact, target: Target) -> NoReturn:
        raise AssertionError("a transfer has profiled layers")


@pytest.fixture(scope="module")
def graph(net: torch.nn.Module) -> ChannelGraph:
    return pk.trace(net, EXAMPLE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Exports every dense network once; what is measured are real files nonetheless."""
    folder, known = tmp_path_factory.mktemp("exported"), {}

    def export(module: torch.nn.Module, example: torch.Tensor, path: Path) -> Artifact:
        key = str([(name, value.shape) for name, value in module.state_dict().items()])
        if key not in known:
            known[key] = pk.export(module, example, folder / f"{len(known)}.onnx")
        shutil.copy(known[key].path, path)
        return replace(known[key], path=str(path))

    return export


@pytest.fixture(autouse=True)
def _quick(exported: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["prunekit.exporting.candidate"], "export", exported)


def profile(net, graph, shard=(1, 1)) -> LatencyTable:
    plan = replace(QUICK, shard=shard)
    return harvest(net, graph, EXAMPLE, FAKE, plan=plan, name="net")


def predicted(table: LatencyTable, graph: ChannelGraph) -> np.ndarray:
    """Milliseconds of networks that no profile has measured."""
    plans = sample_plans(graph, 8, 12, seed=7)
    return np.array([pk.predict(graph, plan, table).ms for plan in plans])


def widths(table: LatencyTable) -> set[tuple[LayerShape, int, int, int]]:
    return {(e.shape, s.cin, s.cout, s.calls) for e in table.entries for s in e.samples}


# --- merge


def made(seed: int, nets: int, **changes: object) -> LatencyTable:
    """A small table with invented times; its first network is the dense one of its model."""
    rng = np.random.default_rng(seed)
    shapes = [LayerShape("conv", (3, 3), in_hw=(s, s), out_hw=(s, s)) for s in (8, 16, 32)]
    model = f"m{seed % 2}"
    samples: dict[LayerShape, list[Sample]] = {}
    networks = []
    for number in range(nets):
        summed = 0.0
        for shape in shapes[seed % 2 :]:
            cin, cout = (64, 64) if number == 0 else map(int, 8 * rng.integers(1, 8, 2))
            us = round(float((5 + cin * cout / 64) * rng.uniform(0.9, 1.1)), 3)
            summed += us
            samples.setdefault(shape, []).append(Sample(number, cin, cout, us, 0.5, 9))
        kept = 1.0 if number == 0 else round(float(rng.uniform(0.1, 0.9)), 4)
        networks.append(Network(model, kept, len(samples), summed, 1.1 * summed, 1.0, 9))
    environment = Environment("device", "1", created=f"2026-01-{1 + seed % 9:02}")
    protocol = Protocol("harvest", nets, 1 + seed % 3, 4, seed, ("all rounds", "9 s")[seed % 2])
    entries = tuple(Entry(shape, tuple(rows)) for shape, rows in samples.items())
    table = LatencyTable(FAKE, environment, protocol, 8, (model,), entries, tuple(networks))
    return replace(table.calibrated(), **changes)


TABLES = st.builds(made, st.integers(0, 9), st.integers(1, 4))


def text(table: LatencyTable) -> str:
    return dump_json(table, "latency table", 1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(TABLES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_merging_is_joining_sets(tables, random):
    """In any order, in any steps, however often one comes."""
    whole = merge(tables)
    shuffled = [*tables, random.choice(tables)]
    random.shuffle(shuffled)
    assert text(merge(shuffled)) == text(whole)
    cut = random.randrange(1, len(tables))
    assert text(merge([merge(tables[:cut]), merge(tables[cut:])])) == text(whole)
    assert text(merge([whole, *tables[:1]])) == text(whole)
    assert text(merge([whole])) == text(whole)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(TABLES, min_size=1, max_size=4))
def test_nothing_is_lost_in_a_merge_and_nothing_made_up(tables):
    whole = merge(tables)

    def measured(table):
        """Every network with its samples, by what was measured."""
        rows: list[list[object]] = [[] for _ in table.networks]
        for entry in table.entries:
            for sample in entry.samples:
                rows[sample.net].append((str(entry.shape), replace(sample, net=0)))
        return [
            (replace(net, session=""), tuple(sorted(row, key=repr)))
            for net, row in zip(table.networks, rows, strict=True)
        ]

    distinct = {text(table): table for table in tables}.values()
    assert Counter(measured(whole)) == Counter(one for table in distinct for one in measured(table))
    assert {*whole.models} == {table.models[0] for table in tables}
    assert whole.protocol.nets == len(whole.networks)
    assert whole.environment.created == max(table.environment.created for table in tables)
    assert whole.networks[0].kept == 1


def test_a_table_merged_with_itself_predicts_as_before(net, graph, device):
    one = profile(net, graph)
    both = merge([one, one])
    assert len(both.networks) == len(one.networks)
    assert predicted(both, graph) == pytest.approx(predicted(one, graph), rel=1e-9)
    assert both.calibration.nets == one.calibration.nets


def test_the_dense_network_of_every_model_is_in_all_fits():
    joined = merge([made(0, 4), made(1, 4)])
    assert [net.kept == 1 for net in joined.networks] == [True, True] + 6 * [False]
    assert joined.calibration.nets == 4  # nor is the fastest of a model left out


REFUSED = [
    (
        {"target": Target("fake", threads=2)},
        "target fake:cpu fp32, batch 1, 2 threads against fake:cpu fp32, batch 1, 1 thread",
    ),
    ({"environment": Environment("other", "1")}, "device name 'other' against 'device'"),
    ({"environment": Environment("device", "2")}, "runtime version '2' against '1'"),
    ({"environment": Environment("device", "1", driver="5")}, "driver '5' against ''"),
    ({"granularity": 16}, "granularity 16 against 8"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_tables_are_refused(change, message, prunekit: Says, tmp_path: Path):
    made(0, 4).save(tmp_path / "a.json")
    made(0, 4, **change).save(tmp_path / "b.json")
    out = tmp_path / "c.json"
    status, _, err = prunekit("table", "merge", tmp_path / "a.json", tmp_path / "b.json", "-o", out)
    assert status == 2
    assert err == (
        f"prunekit: cannot merge {tmp_path / 'b.json'} with {tmp_path / 'a.json'}: {message}; "
        "profile both alike, or compare them with `prunekit table diff`\n"
    )
    assert not out.exists()


def test_a_merge_keeps_that_a_device_was_unsteady():
    shaky = made(1, 4)
    shaky = replace(shaky, protocol=replace(shaky.protocol, drift=0.4, disturbed=0.1))
    joined = merge([made(0, 4), shaky])
    assert (joined.protocol.drift, joined.protocol.disturbed) == (0.4, 0.1)


def test_gpus_of_one_kind_share_a_table():
    numbered = [made(0, 4, target=Target("torch", f"cuda:{i}")) for i in (0, 1)]
    assert merge([*numbered, made(2, 4, target=numbered[0].target)]).target.device == "cuda"
    assert merge(numbered[:1]).target.device == "cuda:0"
    with pytest.raises(TableError, match="target torch:cpu"):
        merge([numbered[0], made(0, 4, target=Target("torch"))])


def test_an_error_that_is_not_known_is_not_zero(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunekit.latency.shipped.FOLDERS", (tmp_path,))
    for number in range(2):
        made(number, 1).save(f"{number}.json")
    *merged, out = ("table", "merge", "0.json", "1.json", "-o", "a.json", "--json")
    assert json.loads(prunekit(*merged, out)[1])["mape"] is None
    shown = json.loads(prunekit("table", "show", "a.json", "--json")[1])["calibration"]
    assert (shown["mape"], shown["worst"], shown["nets"]) == (None, None, 0)
    listed = json.loads(prunekit("table", "list", "--json")[1])
    assert {(row["mape"], row["worst"]) for row in listed.values()} == {(None, None)}
    assert prunekit("table", "list")[1].count("unknown") == 6


def test_merge_on_the_command_line(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        made(2 * number, 4).save(f"{number}.json")
    names = [f"{number}.json" for number in range(3)]
    assert prunekit("table", "merge", *names, "-o", "a.json")[0] == 0
    status, out, err = prunekit("table", "merge", *reversed(names), "-o", "b.json", "--json")
    assert (status, err) == (0, "")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert (json.loads(out)["networks"], json.loads(out)["sessions"]) == (12, 3)
    status, _, err = prunekit("table", "merge", *names, "-o", "a.json")
    assert (status, err) == (2, "prunekit: output a.json exists; use --overwrite or another -o\n")
    status, _, err = prunekit("table", "merge", "0.json", "-o", "c.json")
    assert (status, err) == (2, "prunekit: merge takes two tables or more\n")
    assert prunekit("table", "merge", "0.json", "none.json", "-o", "c.json")[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "a.json", "b.json"]


def test_a_table_from_before_sessions_is_read(tmp_path: Path):
    from prunekit.support.files import _digest

    table = made(0, 4)
    raw = json.loads(text(table))
    del raw["origin"]
    for row in raw["networks"]:
        del row["session"]
    raw["sha256"] = _digest(
        {k: v for k, v in raw.items() if k not in ("prunekit", "version", "sha256")}
    )
    (tmp_path / "old.json").write_text(json.dumps(raw))
    assert LatencyTable.load(tmp_path / "old.json") == table


# --- shards


def test_shards_together_are_the_whole_profile(net, graph, device):
    whole = profile(net, graph)
    shards = [profile(net, graph, (number, 3)) for number in (1, 2, 3)]
    assert {s.networks[0].end_to_end_us for s in shards} == {whole.networks[0].end_to_end_us}
    joined = merge(shards)
    assert widths(joined) == widths(whole)
    assert len(joined.networks) == len(whole.networks) + 2  # the dense one, three times
    assert predicted(joined, graph) == pytest.approx(predicted(whole, graph), rel=1e-9)
    assert joined.calibration.nets == whole.calibration.nets
    assert joined.calibration.mape == pytest.approx(whole.calibration.mape, rel=1e-6)
    (profiled,) = {shard.partition("/")[2] for shard in joined.protocol.shards}
    assert profiled.startswith("3 of net (")
    assert joined.protocol.shards == tuple(f"{number}/{profiled}" for number in (1, 2, 3))
    assert (joined.protocol.missing_shards, whole.protocol.missing_shards) == ((), ())
    assert merge([shards[2], shards[0], whole]).protocol.missing_shards == (f"2/{profiled}",)


def test_shards_of_two_profiles_do_not_make_up_for_each_other(net, graph, device):
    first = profile(net, graph, (1, 2))
    plan = replace(QUICK, shard=(2, 2), seed=1)
    other = harvest(net, graph, EXAMPLE, FAKE, plan=plan, name="net")
    here, there = (table.protocol.shards[0].partition("/")[2] for table in (first, other))
    missing = merge([first, other]).protocol.missing_shards
    assert here != there
    assert {*missing} == {f"2/{here}", f"1/{there}"}


def test_a_model_at_two_inputs_has_two_dense_networks(net, graph, device):
    """They have one name, and all else is relative to them."""
    wide = torch.zeros(1, 3, 48, 48)
    small = profile(net, graph)
    device(slower=5.0)
    large = harvest(net, pk.trace(net, wide), wide, FAKE, plan=QUICK, name="net")
    renamed = replace(large, networks=tuple(replace(n, model="other") for n in large.networks))
    joined, apart = merge([small, large]), merge([small, renamed])
    assert joined.calibration.mape == pytest.approx(apart.calibration.mape, rel=1e-6)
    assert joined.calibration.nets == small.calibration.nets + large.calibration.nets


def test_shards_with_noise_predict_within_the_noise(net, graph, device):
    device(noise=0.02)
    joined = merge([profile(net, graph, (number, 2)) for number in (1, 2)])
    device()
    whole = profile(net, graph)
    expected = predicted(whole, graph)
    error = np.abs(predicted(joined, graph) / expected - 1)
    assert 0 < error[expected > 0.12 * expected[0]].max() < 0.035  # tiny ones do not calibrate


def test_a_slower_machine_is_brought_to_the_speed_of_the_others(net, graph, device):
    """Its ratios to its own dense network are what it adds."""
    whole = profile(net, graph)
    shards = []
    for number, slower in ((1, 1.0), (2, 1.15), (3, 1.0)):
        device(slower=slower)
        shards.append(profile(net, graph, (number, 3)))
    joined = merge(shards)
    assert predicted(joined, graph) == pytest.approx(predicted(whole, graph), rel=2e-3)
    assert joined.calibration.worst == pytest.approx(whole.calibration.worst, abs=2e-3)
    raw = [net.end_to_end_us for net in joined.networks if net.kept == 1]
    assert max(raw) == pytest.approx(1.15 * min(raw), rel=1e-3)  # kept as it was measured
    as_one = replace(joined, networks=tuple(replace(n, session="") for n in joined.networks))
    assert as_one.calibrated().calibration.worst > 0.05


def test_a_network_that_two_sessions_measured_counts_once(net, graph, device):
    """Or its twin would give away the one that is left out."""
    first = profile(net, graph)
    device(slower=1.1)
    second = profile(net, graph)
    joined = merge([first, second])
    entries, networks = joined.pooled
    assert len(joined.networks) == 2 * len(networks)
    assert len({*structures(entries, len(networks))}) == len(networks)
    assert networks[0].end_to_end_us == pytest.approx(
        1.05 * first.networks[0].end_to_end_us, rel=1e-4
    )
    assert networks[0].runs == first.networks[0].runs + second.networks[0].runs
    assert joined.calibration.nets == first.calibration.nets


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


@pytest.mark.parametrize("shard", ["0/4", "5/4", "2", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_shards_that_cannot_be_read(shard):
    with pytest.raises(UsageError, match=r"cannot read --shard .*; write 1/4 to 4/4, or auto"):
        parse_shard(shard)


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


def test_shards_on_the_command_line(prunekit: Says, home: Path, monkeypatch, device):
    nets = ("--nets", 5, "--rounds", 1, "-o", "new.json")
    command = ("profile", "net.py:tiny", *ON_FAKE, *nets)
    assert prunekit(*command, "--shard", "1/2", "-q")[0] == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = prunekit(*command)
    assert status == 2
    assert "several processes would measure the same networks; add --shard auto" in err
    status, out, _ = prunekit(*command, "--shard", "auto", "--json")
    assert (status, json.loads(out)["table"]) == (0, "new.2of2.json")
    status, _, err = prunekit("table", "merge", "new.2of2.json", "table.json", "-o", "part.json")
    assert status == 0
    assert "note: shard 1/2 of net.py:tiny (" in err
    assert ") is missing; the table holds what the others measured" in err
    status, _, err = prunekit("table", "merge", *sorted(home.glob("new.*")), "-o", "new.json")
    assert status == 0
    assert "missing" not in err
    assert prunekit(*command[:-2], "-o", "whole.json")[0] == 0
    assert widths(LatencyTable.load("new.json")) == widths(LatencyTable.load("whole.json"))
    status, _, err = prunekit(*command, "--shard", "1/5")
    assert status == 2
    assert "only 4 to share out; give --nets 6 or more, or fewer shards" in err
    names = {"new.1of2.json", "new.2of2.json", "new.json"}
    assert {path.name for path in home.glob("new*")} == names


# --- diff


def test_a_table_does_not_differ_from_itself():
    table = made(0, 4)
    found = diff(table, table)
    assert (found.facts, found.only_a, found.only_b) == ((), (), ())
    assert (found.networks, found.ratio) == (4, 1.0)
    assert all(row.ratio == 1 for one in found.shapes for row in one.widths)


def test_the_layer_that_changed_comes_first(net, graph, device):
    before = profile(net, graph)
    device(Other, slower=1.5)
    after = profile(net, graph)
    changed = next(s for s in after.by_shape if "+add +relu" in str(s))
    half = replace(
        after.by_shape[changed],
        samples=tuple(replace(s, us=s.us / 2) for s in after.by_shape[changed].samples),
    )
    entries = tuple(half if e.shape == changed else e for e in after.entries)
    found = diff(before, replace(after, entries=entries[1:]))
    (fact,) = found.facts
    assert (fact.what, fact.a, fact.b) == ("device name", "fake device", "another fake")
    assert found.only_a == (entries[0].shape,)
    assert found.networks == 0  # without that layer they are other networks
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    assert found.shapes[0].shape == changed
    assert found.shapes[0].apart == pytest.approx(2, rel=0.05)
    assert max(one.apart for one in found.shapes[1:]) < 1.1
    assert [row.at for row in found.shapes[0].widths] == ["dense", "half", "narrow"]
    assert [row.cout for row in found.shapes[0].widths] == [64, 32, 8]
    assert diff(before, after).ratio == pytest.approx(1.5, rel=1e-3)
    assert diff(before, after).networks == len(before.networks)


def test_diff_on_the_command_line(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(0, 4).save("a.json")
    environment = Environment("device", "2", isa=("avx2",), packages={"numpy": "2.0"})
    other = made(1, 4, target=Target("fake", threads=2), environment=environment)
    other.save("b.json")
    status, out, err = prunekit("table", "diff", "a.json", "b.json")
    assert (status, err) == (0, "")
    assert "runtime version: 1 in A, 2 in B" in out
    assert "numpy: none in A, 2.0 in B" in out
    assert "only in A: conv 3x3 8x8" in out
    assert "no network is in both" in out
    status, out, _ = prunekit("table", "diff", "a.json", "b.json", "--json")
    found = json.loads(out)
    assert status == 0
    assert [fact["what"] for fact in found["differences"]] == [
        *("target", "runtime version", "isa", "numpy")
    ]
    assert len(found["shapes"]) == 2
    assert found["only_a"] == ["conv 3x3 8x8"]
    status, out, _ = prunekit("table", "diff", "a.json", "a.json")
    assert "same target, device and versions" in out


def test_tables_with_nothing_in_common():
    odd = replace(made(1, 4), entries=made(0, 4).entries[:1])
    found = diff(replace(made(1, 4), entries=made(1, 4).entries), odd)
    assert (found.ratio, found.shapes, found.networks) == (None, (), 0)


# --- the staircase


def test_a_staircase_is_flat_within_a_block_and_rises_at_its_border(net, graph, device):
    table = profile(net, graph)
    shape = next(s for s in table.by_shape if str(s) == "conv 3x3 8x8 +relu")
    out, into = staircases(table, shape)
    assert (out.side, out.full, into.side, into.full) == ("out", 64, "in", 64)
    for stair in (out, into):
        assert stair.widths.tolist() == list(range(1, 65))
        assert len({round(us, 9) for us in stair.us[8:16]}) == 1
        assert stair.us[15] < stair.us[16]
        assert [width for width, _ in stair.steps(16)] == list(range(8, 65, 8))
        assert [width for width, _ in stair.steps(2)] == [32, 64]
        corners = stair.corners()
        borders = {(a[0], b[0]) for a, b in pairwise(corners) if a[1] < b[1]}
        assert {(8, 8), (16, 16), (24, 24)} <= borders
    assert len(out.spots) == len(table.by_shape[shape].samples)
    for spot in out.spots:
        assert spot.measured_us == pytest.approx(spot.predicted_us, rel=0.02)
        assert spot.carried_us == pytest.approx(out.us[spot.width - 1], rel=0.02)
        assert spot.there == (spot.cin == 64)
    assert any(spot.there for spot in out.spots)
    assert not all(spot.there for spot in out.spots)


def test_a_depthwise_layer_has_one_staircase(device):
    net = Depthwise().eval()
    graph = pk.trace(net, EXAMPLE)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=replace(QUICK, nets=4), granularity=4)
    shape = next(s for s in table.by_shape if s.kind == "depthwise")
    (stair,) = staircases(table, shape)
    assert stair.side == "both"
    assert all(spot.there for spot in stair.spots)


def test_shapes_are_found_by_their_text(net, graph, device):
    table = profile(net, graph)
    every = dearest(table)
    assert {*every} == {*table.by_shape}
    assert find_shapes(table, "CONV") == [s for s in every if s.kind == "conv"]
    assert [str(s) for s in find_shapes(table, "linear")] == ["linear"]
    dear = [float(table.shape_us(s, 8, 8)) for s in (every[0], every[-1])]
    assert dear[0] > dear[1]
    with pytest.raises(UsageError, match=r"no layer shape of this table matches --layer 'pool'; "):
        find_shapes(table, "pool")


def test_show_draws_staircases(prunekit: Says, home: Path):
    show = ("table", "show", "table.json")
    status, out, _ = prunekit(*show)
    assert status == 0
    assert "█" in out
    status, out, _ = prunekit(*show, "--layer", "3x3/2")
    assert "conv 3x3/2 8x8->4x4 +mean +relu, in-width 32" in out
    assert out.count("█" * 40) == 2
    status, out, _ = prunekit(*show, "--layer", "3x3/2", "--json")
    assert [row["shape"] for row in json.loads(out)["entries"]] == [
        "conv 3x3/2 8x8->4x4 +mean +relu"
    ]
    for name in ("a.html", "a.svg"):
        status, _, err = prunekit(*show, "--plot", name)
        assert (status, err) == (0, f"staircases: {name}\n")
        page = (home / name).read_text()
        assert page.count("<polyline") == 4  # the first and the last layer have one width
        for outside in ("src=", "href=", "url(", "@import", "<script"):
            assert outside not in page
    root = ElementTree.parse(home / "a.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([*root.iter("{http://www.w3.org/2000/svg}circle")]) > 5


def test_names_are_escaped(tmp_path: Path, prunekit: Says):
    environment = Environment("<b>&</b>", "1")
    made(0, 4, environment=environment).save(tmp_path / "t.json")
    for suffix in ("html", "svg"):
        path = tmp_path / f"t.{suffix}"
        assert prunekit("table", "show", tmp_path / "t.json", "--plot", path)[0] == 0
        assert "<b>" not in path.read_text()


def test_a_png_needs_matplotlib(prunekit: Says, home: Path, monkeypatch):
    plot = ("table", "show", "table.json", "--layer", "conv", "--plot", "a.png")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        status, out, err = prunekit(*plot)
    assert (status, out) == (2, "")
    assert err == (
        "prunekit: a PNG needs matplotlib, which is not installed; pip install matplotlib, or use "
        ".svg\n"
    )
    assert not (home / "a.png").exists()
    pytest.importorskip("matplotlib")
    assert prunekit(*plot)[0] == 0
    assert (home / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "pool"), "no layer shape of this table matches --layer 'pool'; it has "),
        (("--plot", "a.gif"), "cannot draw a .gif; use .html, .svg or .png"),
        (("--plot", "a"), "cannot draw a file without suffix; use .html, .svg or .png"),
        (("--plot", "net.py"), "output net.py exists; use --overwrite or another -o"),
    ],
)
def test_show_refuses(arguments, message, prunekit: Says, home: Path):
    before = sorted(home.iterdir())
    status, out, err = prunekit("table", "show", "table.json", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"prunekit: {message}")
    assert sorted(home.iterdir()) == before


# --- transfer


def test_a_transfer_fits_scale_and_cost_per_call_and_nothing_else(net, graph, device):
    table = profile(net, graph)
    device(Unwatched, slower=1.4)
    moved = transfer(ProfileRequest(net, graph, EXAMPLE, FAKE, FEW, "net"), table)
    device(Other, slower=1.4)
    assert moved.environment.device_name == "another fake"
    assert moved.origin == table.environment
    assert moved.protocol.source == "transfer from fake device, 1"
    assert moved.entries == table.entries
    assert moved.calibrated() == moved
    assert len(moved.networks) == 5
    assert moved.networks[0].end_to_end_us == pytest.approx(
        1.4 * table.networks[0].end_to_end_us, rel=1e-3
    )
    there = predicted(profile(net, graph), graph)
    assert predicted(moved, graph) == pytest.approx(there, rel=0.01)
    assert np.abs(predicted(table, graph) / there - 1).min() > 0.2
    assert moved.calibration.nets == 3
    assert moved.calibration.mape <= moved.calibration.worst < 0.025
    moved.check(graph, FAKE, moved.environment)


def test_the_error_of_a_transfer_tells_that_the_device_is_of_another_kind(net, graph, device):
    table = profile(net, graph)
    device(Other, layer_us=60.0)
    usual = transfer(ProfileRequest(net, graph, EXAMPLE, FAKE, FEW), table).calibration
    assert usual.worst < 0.02  # a cost per call is what is fitted
    device(Other, block=32, layer_us=0.1)
    odd = transfer(ProfileRequest(net, graph, EXAMPLE, FAKE, FEW, granularity=8), table).calibration
    assert odd.worst > 0.1


def test_a_transfer_of_a_merged_and_of_a_transferred_table(net, graph, device, tmp_path):
    first = profile(net, graph, (1, 2))
    device(slower=1.1)
    joined = merge([first, profile(net, graph, (2, 2))])
    device(Other, slower=2.0)
    moved = transfer(ProfileRequest(net, graph, EXAMPLE, FAKE, FEW), joined)
    there = predicted(profile(net, graph), graph)
    assert predicted(moved, graph) == pytest.approx(there, rel=0.01)
    again = transfer(ProfileRequest(net, graph, EXAMPLE, FAKE, FEW), moved)
    assert predicted(again, graph) == pytest.approx(there, rel=0.01)
    assert again.origin == joined.environment
    again.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == again
    with pytest.raises(TableError, match=r"cannot merge two: its layers were measured on fake dev"):
        merge([profile(net, graph), again], ["one", "two"])
    assert diff(moved, again).networks == 1  # the dense one
    larger = tuple(
        replace(entry, shape=replace(entry.shape, in_hw=(99, 99))) for entry in again.entries
    )
    assert diff(moved, replace(again, entries=larger)).ratio is None  # at another input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": Target("onnxruntime")}, "its runtime is onnxruntime, not fake"),
        ({"target": Target("fake", "cuda:1")}, "its device is cuda, not cpu"),
        ({"target": Target("fake", precision="fp16")}, "its precision is fp16, not fp32"),
        ({"target": Target("fake", batch=8)}, "its batch is 8, not 1"),
        ({"target": Target("fake", threads=4)}, "its threads is 4, not 1"),
        ({"granularity": 16, "probe": None}, "its device works in 16 channels, this one in 8"),
    ],
)
def test_tables_that_cannot_be_transferred(change, message, prunekit: Says, home: Path):
    replace(LatencyTable.load("table.json"), **change).save("other.json")
    before = sorted(home.iterdir())
    profiled = ("profile", "net.py:tiny", *ON_FAKE, "-o", "new.json", "-q")
    status, _, err = prunekit(*profiled, "--transfer", "other.json")
    assert status == 2
    assert err.startswith(f"prunekit: cannot transfer the latency table: {message}; ")
    assert len(err.splitlines()) == 1
    assert sorted(home.iterdir()) == before


def test_transfer_on_the_command_line(prunekit: Says, home: Path, device):
    profiled = ("profile", "net.py:tiny", *ON_FAKE, "-o", "new.json", "--rounds", 2)
    status, _, err = prunekit(*profiled, "--transfer", "table.json", "--shard", "1/2")
    assert (status, "exclude each other" in err) == (2, True)
    itself = (*profiled[:-4], "-o", "table.json", "--transfer", "table.json", "--overwrite")
    status, _, err = prunekit(*itself)
    assert (status, "--transfer and --output are both table.json" in err) == (2, True)
    status, out, _ = prunekit(*profiled, "--transfer", "table.json", "--json")
    found = json.loads(out)
    assert (status, found["networks"], found["rounds"]) == (0, 5, 2)
    status, out, _ = prunekit("table", "show", "new.json")
    assert "layers measured on fake device, 1" in out
    status, _, err = prunekit(
        "profile", "net.py:medium", *profiled[2:-3], "n.json", "--transfer", "new.json"
    )
    assert status == 2
    assert "run `prunekit profile` for this" in err
    prune = ("prune", "net.py:tiny", *ON_FAKE, "--table", "new.json", "--epochs", 0, "-o", "run2")
    assert prunekit(*prune, "--target-latency", "65%", "-q")[0] == 0
    assert "transfer from fake device" in (home / "run2" / "report.html").read_text()


# --- one writer

SLOW = """
import pathlib, time
import prunekit.profiling.measuring as found
inner, journal = found.Rounds.run, pathlib.Path("new.json.journal.jsonl")
def slowly(*a, **k):
    done = inner(*a, **k)
    if journal.exists() and len(journal.read_text().splitlines()) >= 3:
        time.sleep(60)  # until it is killed
    return done
found.Rounds.run = slowly
from prunekit.cli.main import main
main()
"""


def test_a_second_profile_is_refused_and_a_killed_one_gone_on_with(prunekit: Says, home: Path):
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 12, "-o", "new.json")
    journal, lock = home / "new.json.journal.jsonl", home / "new.json.journal.jsonl.lock"

    def lines() -> int:
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, command)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(home)},
    ) as other:
        deadline = time.monotonic() + 60
        while lines() < 3 and other.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        for more in ((), ("--resume",), ("--overwrite",)):
            status, _, err = prunekit(*command, *more, "-q")
            assert status == 2
            assert err.startswith(f"prunekit: process {other.pid} on ")
            assert err.endswith(
                " is measuring for new.json already; wait for its end or give another -o\n"
            )
        finished = lines() - 1
        other.send_signal(signal.SIGKILL)
        other.wait()
    kept = lines() - 1
    assert finished <= kept <= 4
    assert lock.exists()  # of a dead process: it locks nothing
    status, out, err = prunekit(*command, "--resume", "--json")
    assert status == 0
    assert f"profile: {kept} rounds taken from new.json.journal.jsonl" in err
    assert json.loads(out)["rounds"] == 12
    assert [path.name for path in home.glob("new*")] == ["new.json"]


def test_a_table_that_another_profile_has_finished_meanwhile_stays(
    prunekit: Says, home: Path, monkeypatch
):
    from prunekit.pipeline import table as tables

    def after_another(path, output):
        output.write_text("another's")
        return locked(path, output)

    monkeypatch.setattr(tables, "locked", after_another)
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "-q", "-o", "new.json")
    status, _, err = prunekit(*command)
    assert status == 2
    assert err == "prunekit: output new.json was written meanwhile; use --overwrite or another -o\n"
    assert (home / "new.json").read_text() == "another's"


def test_one_holds_the_lock_at_a_time_though_its_file_comes_and_goes(tmp_path: Path):
    lock, inside, most, turns = tmp_path / "t.lock", [], [], []

    def work():
        while len(turns) < 300:
            with suppress(UsageError), locked(lock, Path("t.json")):
                inside.append(1)
                most.append(len(inside))
                turns.append(1)
                time.sleep(1e-4)
                inside.pop()
            time.sleep(1e-4)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert not lock.exists()


def test_a_lock_leaves_no_folders_behind(tmp_path: Path):
    with (
        pytest.raises(ZeroDivisionError),
        locked(tmp_path / "a" / "b" / "t.lock", Path("t.json")),
    ):
        raise ZeroDivisionError
    assert not [*tmp_path.iterdir()]
    with locked(tmp_path / "a" / "b" / "t.lock", Path("t.json")):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_file_system_without_locks_is_noted(tmp_path: Path, monkeypatch, capsys):
    import errno
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "t.lock", Path("t.json")):
        pass
    assert "let no other profile write t.json" in capsys.readouterr().err


# --- tables that come with the package


def test_shipped_tables_are_found_by_name(prunekit: Says, home: Path, monkeypatch):
    folder = home / "shipped"
    folder.mkdir()
    shutil.copy(home / "table.json", folder / "tiny-fake.json")
    monkeypatch.setattr("prunekit.latency.shipped.FOLDERS", (home / "nowhere", folder))
    status, out, _ = prunekit("table", "list")
    assert status == 0
    assert "tiny-fake" in out
    assert "fake device" in out
    status, out, _ = prunekit("table", "list", "--json")
    assert list(json.loads(out)) == ["tiny-fake"]
    for name in ("tiny-fake", "tiny-fake.json"):
        assert prunekit("table", "show", name)[0] == 0
    command = ("prune", "net.py:tiny", *ON_FAKE, "--epochs", 0, "--target-latency", "70%")
    assert prunekit(*command, "--table", "tiny-fake", "-o", "new")[0] == 0
    status, _, err = prunekit("table", "show", "other")
    assert status == 2
    assert err.startswith("prunekit: cannot read latency table other")


def test_no_layer_of_a_table_in_the_checkout_is_free_however_narrow():
    for path in shipped_tables():
        table = LatencyTable.load(path)
        for entry in table.entries:
            calls = {(1, 1), *((s.cin, s.cout) for s in entry.samples)}
            assert table.shape_us(entry.shape, *np.array([*calls]).T).min() > 0, path.name


def test_tables_in_the_checkout_can_be_read():
    for path in shipped_tables():
        table = LatencyTable.load(path)
        assert table.calibration.nets, path.name
        assert table.environment.device_name, path.name
