"""Profiles: the probe, the choice of networks, steadiness, and where layer times come from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import ON_FAKE, Says
from core_nets import conv
from test_tables import EXAMPLE, FAKE, Small
from torch import nn

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph, LayerShape
from prunekit.core.target import Target
from prunekit.exporting import narrow_onnx
from prunekit.latency import LatencyTable, merge
from prunekit.latency.probe import BLOCKS, block_of, read_probe
from prunekit.profiling import (
    HarvestPlan,
    ProfileRequest,
    collecting,
    differences,
    grid,
    harvest,
    measuring,
    probing,
    sample_plans,
)
from prunekit.profiling.choosing import choose
from prunekit.profiling.harvest import protocol
from prunekit.profiling.journal import Facts, Journal
from prunekit.profiling.measuring import Rounds
from prunekit.profiling.operators import operator
from prunekit.profiling.probing import WIDTHS, probe
from prunekit.profiling.rounds import Round, end_to_end_us, speeds, typical_us
from prunekit.runtimes import runtime_for
from prunekit.runtimes.fake import Fake, FakeEngine
from prunekit.support.errors import NoLayerTimesError, TableError, UsageError
from prunekit.support.registry import runtimes

Be = Callable[..., None]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> ChannelGraph:
    return pk.trace(net, EXAMPLE)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Be:
    """Sets what the fake device is like; without noise unless asked. Probes are not remembered."""
    monkeypatch.setattr(probing, "_known", {})

    def be(kind: type[Fake] = Fake, **settings: float) -> None:
        monkeypatch.setitem(runtimes._loaded, "fake", partial(kind, **{"noise": 0.0, **settings}))

    be()
    return be


def truth(graph: ChannelGraph, net: nn.Module, folder: Path, plans: list[pk.ChannelPlan]):
    """Milliseconds by the fake device's formula."""
    dense = pk.export(net, EXAMPLE, folder / "dense.onnx")
    found = []
    for number, plan in enumerate(plans):
        made = narrow_onnx(dense, plan, folder / f"{number}.onnx")
        assert made is not None
        engine = runtime_for(FAKE).load(made, FAKE)
        found.append(float(np.median(engine.time(99))))
    return np.array(found)


def predicted(table: LatencyTable, graph: ChannelGraph, plans: list[pk.ChannelPlan]):
    return np.array([pk.predict(graph, plan, table).ms for plan in plans])


# --- the probe


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_the_probe_finds_the_block_of_a_device(block: int, device: Be):
    device(block=block, noise=0.02)
    found = probe(FAKE)
    assert found.granularity == block
    assert {kind.block for kind in found.kinds} == {block}
    assert not found.cliffs


def staircase(block: int, rough: float = 0.0) -> dict[int, float]:
    rng = np.random.default_rng(0)
    return {
        w: (5 + 0.05 * (-(-w // block) * block) ** 2) * float(np.exp(rough * rng.normal()))
        for w in WIDTHS
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_a_staircase_is_read_through_noise(block: int):
    assert block_of(staircase(block)) == block
    assert block_of(staircase(block, 0.02)) == block


def test_smooth_and_flat_layers_have_no_block():
    assert block_of({w: 5 + 0.3 * w for w in WIDTHS}) == 1
    assert block_of({w: 5 + 0.05 * w**2 for w in WIDTHS}) == 1
    assert block_of(dict.fromkeys(WIDTHS, 80.0)) == 1
    assert read_probe({"dense": dict.fromkeys(WIDTHS, 80.0)}, nominal=8).granularity == 8


@pytest.mark.parametrize("block", BLOCKS[:-1])
def test_outputs_in_blocks_and_inputs_in_any_number_are_a_staircase_too(block: int):
    """As OpenVINO's convolutions are."""
    times = {w: 2 + 0.06 * w * (-(-w // block) * block) for w in WIDTHS}
    assert block_of(times) == block


def test_odd_widths_that_fall_off_the_fast_path_are_a_cliff_and_no_block():
    """As depthwise layers do on ONNX Runtime: blocks of 16, and five times that off fours."""
    smooth = staircase(16)
    times = {w: us * (5 if w % 4 else 1) * (1.5 if w < 16 else 1) for w, us in smooth.items()}
    found = read_probe({"dense": smooth, "depthwise": times}, nominal=8)
    assert found.granularity == 16
    assert [(c.kind, c.multiple, c.below) for c in found.cliffs] == [
        ("depthwise", 4, False),
        ("depthwise", 16, True),
    ]
    assert found.cliffs[0].slowdown == pytest.approx(5, rel=0.1)
    assert str(found.cliffs[0]).startswith("depthwise layers off multiples of 4 channels take")


def test_the_probe_is_the_default_granularity_and_stays_in_the_table(
    net, graph, device: Be, tmp_path: Path
):
    device(block=4)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=4, rounds=1))
    assert (table.granularity, table.probe.nominal) == (4, 4)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json").probe == table.probe
    asked = harvest(net, graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=4, rounds=1), granularity=16)
    assert (asked.granularity, asked.probe) == (16, None)


# --- the choice of networks


def test_chosen_networks_are_new_unsure_and_repeatable(net, graph, device: Be):
    device(noise=0.02)
    plan = HarvestPlan(nets=5, rounds=1, active=False)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    plans = sample_plans(graph, 8, 5, seed=0)
    chosen = choose(graph, table, plans, 4, seed=0)
    assert [p.widths for p in choose(graph, table, plans, 4, seed=0)] == [p.widths for p in chosen]
    widths = [tuple(p.widths.values()) for p in (*plans, *chosen)]
    assert len(set(widths)) == len(widths)
    random = [pk.ChannelPlan.random(graph, 0.6, seed, 8) for seed in range(40)]
    usual = np.mean([table.deviation(graph, p.widths) for p in random])
    assert table.deviation(graph, chosen[0].widths) > usual


def test_an_active_profile_measures_all_networks_as_often(net, graph):
    plan = HarvestPlan(nets=9, rounds=3, turns=1)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    runs = [n.runs for n in table.networks]
    assert len(runs) == 9
    assert runs[0] > runs[1]  # the dense network is in every round
    assert table.protocol.rounds == 3 + 2  # two at a time after the first round
    assert table.protocol.stopped == "all rounds"


# --- when to stop, and how steady the device was


def test_the_target_error_ends_a_profile_early(net, graph):
    plan = HarvestPlan(nets=12, rounds=9, turns=1, target_error=0.02)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.stopped == "error at most 2 %"
    assert table.protocol.rounds < 9
    assert table.calibration.mape <= 0.02


def test_the_time_ends_a_profile_after_the_least_rounds(net, graph):
    plan = HarvestPlan(nets=12, rounds=9, turns=1, max_seconds=0.0, min_rounds=2)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.stopped == "0 s"
    assert table.protocol.rounds == 2
    assert len(table.networks) < 12


def test_no_round_begins_that_would_end_too_late(net, graph, monkeypatch):
    clock = itertools.count(0.0, 5.0)
    own = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(collecting, "time", own)
    wanted = HarvestPlan(nets=5, rounds=9, turns=1, max_seconds=58.0, active=False)
    plans = sample_plans(graph, 8, 5, seed=0)
    found = collecting.collect(ProfileRequest(net, graph, EXAMPLE, FAKE, wanted), plans, 8, Facts())
    assert found.stopped == "58 s"
    ends = [one.seconds for one in found.rounds]
    assert ends == [10.0, 20.0, 30.0, 40.0, 50.0]  # another one would end at 60 s


def test_networks_that_take_long_get_fewer_turns(net, graph, monkeypatch):
    wanted = HarvestPlan(nets=2, rounds=1, turns=5, active=False)
    plans = sample_plans(graph, 8, 2, seed=0)

    def runs() -> tuple[int, int]:
        found = collecting.collect(
            ProfileRequest(net, graph, EXAMPLE, FAKE, wanted), plans, 8, Facts()
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
    net, graph, device: Be, monkeypatch, capsys
):
    plan = HarvestPlan(nets=6, rounds=4, turns=1, active=False)
    steady = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    device(Throttling)
    run = Rounds.run

    def slower(rounds: Rounds, number: int, nets):
        throttled[0] = 2.0 if number >= 2 and len(nets) < 20 else 1.0
        return run(rounds, number, nets)

    monkeypatch.setattr(Rounds, "run", slower)
    capsys.readouterr()
    table = harvest(net, graph, EXAMPLE, FAKE, plan=plan)
    assert table.protocol.drift == pytest.approx(1.0, abs=0.02)
    assert "note: the device's speed changed by 100% from round to round" in capsys.readouterr().err
    for plan in sample_plans(graph, 8, 5, seed=3):
        widths = plan.widths
        assert table.half_width(graph, widths) >= 0.125
        assert table.half_width(graph, widths) > steady.half_width(graph, widths) + 0.1


def test_intervals_hold_most_networks_and_are_no_wider_than_they_need(
    net, graph, device: Be, tmp_path: Path
):
    device(noise=0.03)
    plans = [pk.ChannelPlan.random(graph, k, s, 8) for s in range(12) for k in (0.4, 0.6, 0.8)]
    table = harvest(net, graph, EXAMPLE, FAKE, plan=HarvestPlan(rounds=2, turns=1))
    # the lower half of noisy times is below their median: a matter of scale alone
    real = truth(graph, net, tmp_path, plans)
    ratio = predicted(table, graph, plans) / real
    error = np.abs(ratio / np.median(ratio) - 1)
    half = np.array([table.half_width(graph, plan.widths) for plan in plans])
    assert np.mean(error <= half) >= 0.85
    assert np.median(half) < 8 * max(np.median(error), 0.002)


# --- where layer times come from


def test_a_grid_of_single_operators(net, graph, tmp_path: Path, prunekit: Says):
    journal = tmp_path / "grid.jsonl"
    plan = HarvestPlan(max_seconds=3)
    table = grid(ProfileRequest(net, graph, EXAMPLE, FAKE, plan, journal=journal))
    assert table.protocol.source == "grid"
    assert {e.shape for e in table.entries} == {x.shape for x in graph.layers}
    plans = sample_plans(graph, 8, 8, seed=5)
    real = truth(graph, net, tmp_path, plans)
    assert predicted(table, graph, plans) == pytest.approx(real, rel=0.12)
    with pytest.raises(TableError, match="were not watched in networks"):
        merge([table, table])
    # what was measured stays measured, and no more is when the time is over
    late = replace(plan, max_seconds=0.5)
    kept = grid(ProfileRequest(net, graph, EXAMPLE, FAKE, late, journal=journal, resume=True))
    assert {e.shape: e.samples for e in kept.entries} == {e.shape: e.samples for e in table.entries}
    assert kept.protocol.stopped in ("0.5 s", "all rounds")
    none = replace(plan, max_seconds=0.0)
    assert grid(ProfileRequest(net, graph, EXAMPLE, FAKE, none)).protocol.stopped == "0 s"


class Silent(Fake):
    """Tells no times of layers."""

    def profiler(self, artifact: Artifact, target: Target) -> None:
        return None


def test_a_runtime_without_layer_times_is_fitted_by_differences(
    net, graph, device: Be, tmp_path: Path, capsys
):
    device(Silent, noise=0.01)
    plan = HarvestPlan(rounds=2, turns=2)
    with pytest.raises(NoLayerTimesError, match="tells no time"):
        harvest(net, graph, EXAMPLE, FAKE, plan=plan, granularity=8)
    table = differences(ProfileRequest(net, graph, EXAMPLE, FAKE, plan))
    assert table.protocol.source == "differences"
    assert table.calibration.nets >= 20
    plans = [pk.ChannelPlan.random(graph, k, 9, 8) for k in (0.4, 0.5, 0.7, 0.9)]
    real = truth(graph, net, tmp_path, plans)
    assert predicted(table, graph, plans) == pytest.approx(real, rel=0.1)
    assert 0 < table.calibration.mape < 0.06


def test_the_command_falls_back_and_says_so(device: Be, prunekit: Says, home: Path):
    device(Silent)
    status, out, err = prunekit("profile", "net.py:tiny", *ON_FAKE, "--rounds", 1, "-o", "t.json")
    assert (status, out) == (0, "latency table: t.json\n")
    assert "differences of whole networks are taken, 24 of them" in err
    assert LatencyTable.load(home / "t.json").protocol.source == "differences"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source", "guess"), "unknown --source 'guess'; known: auto, harvest, grid, diff"),
        (
            ("--source", "grid", "--shard", "1/2"),
            "--source grid does not go with --shard; drop one",
        ),
        (
            ("--source", "differences", "--target-error", "2%"),
            "--target-error does not go with --source differences; drop one",
        ),
        (
            ("--source", "harvest", "--transfer", "table.json"),
            "--source harvest does not go with --transfer; drop one",
        ),
        (
            ("--source", "grid", "--nets", 6),
            "--nets does not go with --source grid, which measures for --max-seconds; drop one",
        ),
        (("--source", "grid", "--rounds", 8), "--rounds does not go with --source grid"),
        (
            ("--source", "differences", "--nets", 6),
            "--source differences needs --nets 24 or more, not 6",
        ),
        (("--target-error", "2"), "cannot read --target-error '2'; write a percentage such as"),
        (("--target-error", "x%"), "cannot read --target-error 'x%'"),
    ],
)
def test_bad_flags(flags, message, prunekit: Says, home: Path):
    status, out, err = prunekit("profile", "net.py:tiny", *ON_FAKE, *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_fallback_is_resumed_as_what_it_is(device: Be, prunekit: Says, home: Path):
    device(Silent)
    journal = home / "t.json.journal.jsonl"
    command = ("profile", "net.py:tiny", *ON_FAKE, "--rounds", 1, "-o", "t.json")
    kept = []
    append = Journal.append

    def stop(own: Journal, row: Round) -> None:
        append(own, row)
        kept.append(journal.read_text())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        assert prunekit(*command)[0] == 130
    assert '"source": "differences"' in kept[0]
    status, _, err = prunekit(*command, "--resume", "--nets", 30)
    assert status == 2  # other networks than the journal's
    assert "`nets` was 24 and is 30 now" in err
    status, _, err = prunekit(*command, "--resume")
    assert status == 0
    assert "profile: 1 rounds taken from" in err


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (0, "123"),
        (1, "123"),
        (1, '{"round": 3}'),
        (0, {"probe": {"granularity": "wide"}}),
        (0, {"source": "guess"}),
    ],
)
def test_a_damaged_journal_is_named(line, damage, prunekit: Says, home: Path):
    journal = home / "t.json.journal.jsonl"
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 3, "-o", "t.json")
    append = Journal.append

    def stop(own: Journal, row: Round) -> None:
        append(own, row)
        if row.round == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        assert prunekit(*command)[0] == 130
    lines = journal.read_text().splitlines()
    head = json.loads(lines[0])
    lines[line] = damage if isinstance(damage, str) else json.dumps(head | damage)
    journal.write_text("\n".join(lines) + "\n")
    status, _, err = prunekit(*command, "--resume")
    assert status == 2
    said = f"damaged at line {line + 1}; remove it to start again"
    assert err.splitlines()[-1] == f"prunekit: journal t.json.journal.jsonl is {said}"
    assert journal.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nets": 1}, "`nets` is 1; the least is 2"),
        ({"rounds": 0}, "`rounds` is 0; the least is 1"),
        ({"turns": 0}, "`turns` is 0; the least is 1"),
        ({"seed": -1}, "`seed` is -1; the least is 0"),
        ({"shard": (3, 2)}, "`shard` is (3, 2); write (1, 4) to (4, 4)"),
        ({"max_seconds": math.nan}, "`max_seconds` nan"),
        ({"target_error": -1.0}, "`target_error` -1"),
    ],
)
def test_plans_that_measure_nothing_sensible_are_refused(change, message):
    with pytest.raises(UsageError) as caught:
        HarvestPlan(**change)
    assert message in str(caught.value)


def test_a_target_may_be_text_and_a_granularity_is_at_least_one(net, graph, device: Be):
    plan = HarvestPlan(nets=4, rounds=1)
    assert harvest(net, graph, EXAMPLE, "fake", plan=plan).target == FAKE
    refused = pytest.raises(UsageError, match="`granularity` must be at least 1, not -3")
    with refused:
        harvest(net, graph, EXAMPLE, "fake", plan=plan, granularity=-3)
    for measure in (grid, differences):
        with refused:
            measure(ProfileRequest(net, graph, EXAMPLE, FAKE, plan, granularity=-3))


def test_a_round_that_only_the_dense_network_knows_is_told(net, graph):
    """With one round per network, every later round has two networks of its own."""
    rows = [
        a_round([0, 1, 2], [[4.0], [2.0], [1.0]]),
        a_round([0, 3, 4], [[4.8], [2.4], [1.2]]),
        a_round([0, 5, 6], [[4.0], [2.0], [1.0]]),
    ]
    assert speeds(rows) == pytest.approx([1.0, 1.2, 1.0])


def test_a_model_too_entangled_to_allocate_is_profiled_all_the_same(net, graph, monkeypatch):
    monkeypatch.setattr("prunekit.allocation.solvers.elimination.LARGEST_TABLE", 0)
    table = harvest(net, graph, EXAMPLE, FAKE, plan=HarvestPlan(nets=7, rounds=1, turns=1))
    assert len(table.networks) == 7


class Grouped(nn.Module):
    """A grouped convolution, whose groups go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=8)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.grouped(self.first(x).relu()).relu().mean((2, 3)))


def test_a_grid_times_grouped_layers_with_the_groups_that_are_left():
    model = Grouped().eval()
    graph = pk.trace(model, EXAMPLE)
    table = grid(
        ProfileRequest(model, graph, EXAMPLE, FAKE, HarvestPlan(max_seconds=2), granularity=4)
    )
    (entry,) = (e for e in table.entries if e.shape.groups == 8)
    assert {(s.cin, s.cout) for s in entry.samples} <= {(4 * k, 8 * k) for k in range(1, 9)}
    assert len(entry.samples) > 2


SHAPES = [
    LayerShape("conv", (3, 3), (2, 2), (1, 1), 1, (9, 9), (5, 5)),
    LayerShape("conv", (3, 3), (1, 1), (2, 2), 2, (8, 8), (8, 8), ("add", "relu")),
    LayerShape("conv", (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8), ("relu",)),
    LayerShape("conv", (7,), (2,), (1,), 1, (20,), (10,)),
    LayerShape("conv", (3, 3, 3), (1, 1, 1), (1, 1, 1), 1, (4, 4, 4), (4, 4, 4)),
    LayerShape("conv", (2, 2), (2, 2), (1, 1), 1, (9, 9), (4, 4)),
    LayerShape("depthwise", (5, 5), (2, 2), (1, 1), 1, (8, 8), (4, 4)),
    LayerShape("transposed", (3, 3), (2, 2), (1, 1), 1, (4, 4), (8, 8)),
    LayerShape("transposed", (2, 2), (2, 2), (1, 1), 1, (4, 4), (8, 8)),
    LayerShape("linear"),
    LayerShape("linear", in_hw=(7,), out_hw=(7,)),
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_operators_have_the_sizes_of_their_layer(shape, runtime: str, tmp_path: Path):
    cin, cout = (8, 8) if shape.kind == "depthwise" else (8, 12)
    target = Target(runtime)
    made = operator(shape, cin, cout, target, runtime == "torch", tmp_path / "o.onnx")
    rng = np.random.default_rng(0)
    sizes = {name: (1, *size[1:]) for name, size in made.input_shapes.items()}
    values = {name: rng.random(size, dtype=np.float32) for name, size in sizes.items()}
    (found,) = runtime_for(target).load(made, target).run(values)
    last = (*shape.out_hw, cout) if shape.kind == "linear" else (cout, *shape.out_hw)
    assert found.shape == (1, *last)
    if "relu" in shape.epilogue:
        assert found.min() == 0


class Fresh(nn.Module):
    """Norms before their convolutions, which cannot be folded, all with equal values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 16)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(16)])
        self.convs = nn.ModuleList([conv(16, 16), conv(16, 24)])
        self.fc = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = layer(norm(x).relu())
        return self.fc(x.mean((2, 3)))


def test_networks_with_fresh_norms_are_narrowed_without_an_export(tmp_path: Path):
    model = Fresh().eval()
    graph = pk.trace(model, EXAMPLE)
    dense = pk.export(model, EXAMPLE, tmp_path / "dense.onnx")
    groups = [g for g in graph.groups if g.prunable]
    assert len({g.size for g in groups[:2]}) == 1
    widths = {group.id: 8 + 4 * number for number, group in enumerate(groups)}
    plan = pk.ChannelPlan.from_widths(graph, widths)
    made = narrow_onnx(dense, plan, tmp_path / "narrow.onnx")
    assert made is not None
    real = pk.export(pk.slim(model, plan), EXAMPLE, tmp_path / "real.onnx")

    def shapes(path: str) -> list[tuple[int, ...]]:
        weights = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
        kinds = ("Conv", "BatchNormalization", "Gemm")
        nodes = [n for n in onnx.load(path).graph.node if n.op_type in kinds]
        return [weights[name] for node in nodes for name in node.input[1:]]

    assert shapes(made.path) == shapes(real.path)
