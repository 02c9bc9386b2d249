"""What may be asked of a profile, and narrowed networks in place of exports."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.exporting import narrow_onnx
from prunekit.profiling import (
    HarvestPlan,
    ProfileRequest,
    differences,
    grid,
    harvest,
)
from prunekit.support.errors import UsageError
from support.commands import ON_FAKE, Says
from support.devices import Be
from support.nets import conv
from support.tables import EXAMPLE, FAKE


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


def test_a_target_may_be_text_and_a_granularity_is_at_least_one(small_net, small_graph, device: Be):
    plan = HarvestPlan(nets=4, rounds=1)
    assert harvest(small_net, small_graph, EXAMPLE, "fake", plan=plan).target == FAKE
    refused = pytest.raises(UsageError, match="`granularity` must be at least 1, not -3")
    with refused:
        harvest(small_net, small_graph, EXAMPLE, "fake", plan=plan, granularity=-3)
    for measure in (grid, differences):
        with refused:
            measure(ProfileRequest(small_net, small_graph, EXAMPLE, FAKE, plan, granularity=-3))


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
    small_graph = pk.trace(model, EXAMPLE)
    dense = pk.export(model, EXAMPLE, tmp_path / "dense.onnx")
    groups = [g for g in small_graph.groups if g.prunable]
    assert len({g.size for g in groups[:2]}) == 1
    widths = {group.id: 8 + 4 * number for number, group in enumerate(groups)}
    plan = pk.ChannelPlan.from_widths(small_graph, widths)
    made = narrow_onnx(dense, plan, tmp_path / "narrow.onnx")
    assert made is not None
    real = pk.export(pk.slim(model, plan), EXAMPLE, tmp_path / "real.onnx")

    def shapes(path: str) -> list[tuple[int, ...]]:
        weights = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
        kinds = ("Conv", "BatchNormalization", "Gemm")
        nodes = [n for n in onnx.load(path).graph.node if n.op_type in kinds]
        return [weights[name] for node in nodes for name in node.input[1:]]

    assert shapes(made.path) == shapes(real.path)
