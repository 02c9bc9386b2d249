"""Small tables with invented times, a small network, and the profiles of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import prunekit as pk
from prunekit.core.graph import ChannelGraph, LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample
from prunekit.profiling import HarvestPlan, harvest, sample_plans
from prunekit.runtimes.fake import Fake
from prunekit.support.files import dump_json
from support.nets import conv

FAKE = Target("fake")
EXAMPLE = torch.zeros(1, 3, 16, 16)
QUICK = HarvestPlan(nets=9, rounds=1, turns=1, active=False)


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


def profile(net, graph, shard=(1, 1)) -> LatencyTable:
    plan = replace(QUICK, shard=shard)
    return harvest(net, graph, EXAMPLE, FAKE, plan=plan, name="net")


def predicted(table: LatencyTable, graph: ChannelGraph) -> np.ndarray:
    """Milliseconds of networks that no profile has measured."""
    plans = sample_plans(graph, 8, 12, seed=7)
    return np.array([pk.predict(graph, plan, table).ms for plan in plans])


def widths(table: LatencyTable) -> set[tuple[LayerShape, int, int, int]]:
    return {(e.shape, s.cin, s.cout, s.calls) for e in table.entries for s in e.samples}


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


def text(table: LatencyTable) -> str:
    return dump_json(table, "latency table", 1)
