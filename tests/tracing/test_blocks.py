"""Residual blocks that go as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.core.target import Target
from prunekit.profiling import HarvestPlan
from prunekit.runtimes import runtime_for
from prunekit.support.errors import FileError, InfeasibleError, UsageError
from prunekit.support.files import dump_json, load_json
from support.nets import (
    Plain,
    conv,
)
from support.structures import IMAGE

ZEROS = torch.zeros(1, 3, 16, 16)
FAKE = Target("fake")


class Bottleneck(nn.Module):
    """Two groups inside."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.down, self.mid, self.up = (
            conv(width, inside),
            conv(inside, inside),
            conv(inside, width),
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.norm(self.up(self.mid(self.down(x).relu()).relu()))).relu()


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32)
        self.one, self.two, self.three = (Bottleneck(32, 16) for _ in range(3))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.three(self.two(self.one(self.stem(x).relu())))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Deep()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> pk.ChannelGraph:
    return pk.trace(net, ZEROS)


def widths(graph: pk.ChannelGraph, *gone: str, **others: int) -> dict[str, int]:
    return {group: 0 for block in gone for group in graph.droppable[block]} | others


def test_blocks_with_all_groups_inside_may_go(graph):
    assert list(graph.droppable) == ["one", "two", "three"]
    assert graph.droppable["two"] == ("two.down", "two.mid")


def test_without_a_block_the_network_is_the_others(net, graph):
    plan = pk.ChannelPlan.from_widths(graph, widths(graph, "two") | {"one.mid": 8, "stem": 24})
    assert plan.removed == ("two",)
    assert not plan.is_dense
    small = pk.slim(net, plan)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    masked = pk.mask_(pk.slim(net, pk.ChannelPlan.dense(graph)), plan)
    with torch.no_grad():
        expected, found = masked.double()(x), small.double()(x)
    assert torch.allclose(expected, found, rtol=1e-12, atol=1e-12)
    by_hand = Deep().eval()
    by_hand.load_state_dict(net.state_dict())
    by_hand.two = nn.Identity()
    whole = pk.ChannelPlan.from_widths(graph, widths(graph, "two"))
    with torch.no_grad():
        same = torch.equal(pk.slim(net, whole)(ZEROS + 1), by_hand(ZEROS + 1))
    assert same
    assert not any(name.startswith("two.") for name in small.state_dict())


def test_plans_with_gone_blocks_are_saved_and_read(net, graph, tmp_path: Path):
    plan = pk.ChannelPlan.from_widths(graph, widths(graph, "one", "three"))
    plan.save(tmp_path / "plan.json")
    again = pk.ChannelPlan.load(tmp_path / "plan.json")
    assert again.removed == ("one", "three")
    assert again.widths == plan.widths
    made = pk.export(pk.slim(net, plan), ZEROS, tmp_path / "model.onnx")
    assert runtime_for(FAKE).load(made, FAKE).time(1)
    (tmp_path / "none.json").write_text(
        dump_json(pk.ChannelPlan(plan.fingerprint, plan.keep, plan.cuts, plan.sizes), "plan", 1)
    )
    with pytest.raises(FileError, match="keeps channels it does not have"):
        pk.ChannelPlan.load(tmp_path / "none.json")
    assert load_json(tmp_path / "plan.json", pk.ChannelPlan, "plan", 1).removed


def test_half_a_block_cannot_go(graph):
    with pytest.raises(UsageError, match="or none of all groups in a removable block"):
        pk.ChannelPlan.from_widths(graph, {"two.down": 0})
    with pytest.raises(UsageError, match=r"width 0 of group 'stem' is not in 1\.\.32"):
        pk.ChannelPlan.from_widths(graph, {"stem": 0})


def test_blocks_go_where_widths_alone_do_not_reach(net, graph, tmp_path: Path):
    plan = HarvestPlan(nets=8, rounds=2, turns=1)
    table = pk.harvest(net, graph, ZEROS, FAKE, plan=plan)
    scores = pk.score(net, graph, pk.Magnitude())
    dense = pk.export(net, ZEROS, tmp_path / "dense.onnx")
    engine = runtime_for(FAKE)
    whole = float(np.median(engine.load(dense, FAKE).time(99)))
    least = pk.allocate(graph, scores, table, pk.Budget.parse("100%"), at_most=dict.fromkeys(
        (g.id for g in graph.groups if g.prunable), 8)).ratio  # fmt: skip
    for share in (0.8, 0.5, least * 0.8):
        budget = pk.Budget.parse(f"{100 * share:.1f}%")
        found = pk.allocate(graph, scores, table, budget, depth=True)
        assert found.status in ("optimal", "feasible")
        small = pk.export(pk.slim(net, found.plan), ZEROS, tmp_path / "small.onnx")
        timed = float(np.median(engine.load(small, FAKE).time(99)))
        assert timed / whole == pytest.approx(found.ratio, abs=0.03)
        predicted = pk.predict(graph, found.plan, table)
        assert predicted.low_ms <= predicted.ms <= predicted.high_ms
        if share < least:
            assert found.plan.removed
            with pytest.raises(InfeasibleError):
                pk.allocate(graph, scores, table, budget)
        else:
            narrow = pk.allocate(graph, scores, table, budget)
            assert found.value >= narrow.value - 1e-4


def test_what_may_go_in_the_zoo_and_in_torchvision():
    graph = pk.trace(zoo.build("resnet20", 10, 3).eval(), ZEROS)
    assert len(graph.droppable) >= 6
    assert all(len(groups) == 1 for groups in graph.droppable.values())


class Adds(nn.Module):
    """Adds what its layer and its inner block make of the input."""

    def __init__(self, inner):
        super().__init__()
        self.conv, self.inner = conv(8, 8), inner

    def forward(self, x):
        return x + self.inner(self.conv(x))


class Gain(nn.Module):
    """A residual sum without a layer, as in a response norm."""

    def forward(self, x):
        return x + x.relu()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.outer, self.fc = conv(3, 8), Adds(Adds(Gain())), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.outer(self.stem(x)).mean((2, 3)))


class Blocks(nn.Module):
    """Three residual blocks; the second widens, the third hands its size on."""

    def __init__(self, rigid):
        super().__init__()
        self.stem, self.one, self.fc = conv(3, 8), Doubled(8, 8), nn.Linear(16, 5)
        self.two, self.three, self.rigid = Doubled(8, 16), Doubled(16, 16), rigid

    def forward(self, x):
        x = self.three(self.two(self.one(self.stem(x))))
        if self.rigid:
            x = x * self.three.body.weight.mean()
        return self.fc(x.mean((2, 3)))


class Doubled(nn.Module):
    """A convolution added to its input, repeated where that is narrower."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.body, self.times = conv(inputs, outputs), outputs // inputs

    def forward(self, x):
        return (x if self.times == 1 else torch.cat([x] * self.times, 1)) + self.body(x)


def test_residual_blocks_without_which_every_shape_stays_are_removable():
    assert pk.trace(Blocks(False), IMAGE).removable == ("one", "three")
    assert pk.trace(Blocks(True), IMAGE).removable == ("one",)
    assert pk.trace(Plain(), IMAGE).removable == ()
    assert pk.trace(Nested(), IMAGE).removable == ("outer", "outer.inner")
