"""Where structure matters and training is done: does a search find widths that are worth something?

    python -m benchmarks.iee_structure.run                   everything, resumed where it stopped
    python -m benchmarks.iee_structure.run --minutes 10      as much as fits
    python -m benchmarks.iee_structure.run --subset          seconds, for a test of the script

Pinched networks, whose uniform widths are bad, and a balanced one as the control, whose are good:
two MLPs of equal MACs on one task (classes of several blobs) at 15 % of the MACs, and a small
convolutional network on glyphs at 20 %. Channels go one by one, so that nothing but the choice of
channels is compared. `cost` is training in FLOPs; 1 is a
dense training of the same length. Every run is a line of results/iee_structure_runs.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunekit as pk
from benchmarks import glyphs
from benchmarks.common import RESULTS, code, compared, save
from prunekit.allocation import allocate, uniform
from prunekit.allocation.allocate import cost_model
from prunekit.pruning.halp import Halp, Schedule

LOG = RESULTS / "iee_structure_runs.jsonl"
INPUTS, CLASSES, BLOBS, NOISE = 32, 32, 3, 0.9
TRAINING, TEST, BATCH, RATE = 12_000, 5_000, 256, 0.1
EPOCHS, SHARE, SEEDS = 60, 0.15, (0, 1, 2, 3, 4)
GLYPHS, GLYPH_CLASSES = 6_000, 36
METHODS = (
    *("dense", "uniform", "uniform twice", "halp", "halp by shares"),
    *("iee", "iee joint", "iee joint by shares", "widths of iee joint"),
    "widths of a long search by shares",
)
JOINT = {"exchange": "joint", "warmup": 100}
LONG = {**JOINT, "estimate": 40, "explore": 40, "until": 0.9}
"""Search alone: hardly any training is left after it."""


class Blobs:
    """Points around centres, of which every class has a few."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(2000 + seed)
        centres = torch.randn(CLASSES * BLOBS, INPUTS, generator=generator)
        chosen = torch.randint(len(centres), (TRAINING + TEST,), generator=generator)
        noise = torch.randn(TRAINING + TEST, INPUTS, generator=generator)
        self.points, self.labels = centres[chosen] + NOISE * noise, chosen // BLOBS

    def batches(self, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, whole ones."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(TRAINING, generator=generator)
            for start in range(0, TRAINING - BATCH + 1, BATCH):
                part = order[start : start + BATCH]
                yield self.points[part], self.labels[part]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """On the test points, in percent."""
        answer = model.eval()(self.points[TRAINING:]).argmax(1)
        return 100 * float((answer == self.labels[TRAINING:]).float().mean())


class Glyphs:
    """Strokes over clutter, 16 x 16, tested in fonts that training never shows."""

    def __init__(self, seed: int) -> None:
        del seed
        parts = [glyphs.dataset(part, 16, GLYPH_CLASSES) for part in ("train", "test")]
        (self.images, self.labels), (self.test, self.answers) = (
            (
                torch.stack([part[i][0] for i in range(count)]),
                torch.tensor([part[i][1] for i in range(count)]),
            )
            for part, count in zip(parts, (GLYPHS, 4_000), strict=True)
        )

    def batches(self, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, whole ones."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(GLYPHS, generator=generator)
            for start in range(0, GLYPHS - 64 + 1, 64):
                part = order[start : start + 64]
                yield self.images[part], self.labels[part]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        parts = [model.eval()(part).argmax(1) for part in self.test.split(500)]
        return 100 * float((torch.cat(parts) == self.answers).float().mean())


@dataclass(frozen=True)
class Case:
    """A network, its task and its budget."""

    widths: tuple[int, ...]
    data: type[Blobs] | type[Glyphs]
    epochs: int
    share: float
    seeds: tuple[int, ...]
    per_epoch: int
    example: tuple[int, ...]

    def network(self, seed: int) -> nn.Module:
        """Fresh."""
        torch.manual_seed(seed)
        return mlp(self.widths) if self.data is Blobs else convolutional(self.widths)


def mlp(widths: tuple[int, ...]) -> nn.Module:
    """With norms."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((INPUTS, *widths)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def convolutional(widths: tuple[int, ...]) -> nn.Module:
    """3x3, the first and the third of stride 2, pooled at the end."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise((3, *widths))):
        conv = nn.Conv2d(inputs, outputs, 3, 1 + (number % 2 == 0), 1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], GLYPH_CLASSES)
    )


BLOB = (Blobs, EPOCHS, SHARE, SEEDS, TRAINING // BATCH, (1, INPUTS))
CASES = {
    "pinched": Case((192, 24, 192, 24), *BLOB),
    "balanced": Case((76, 76, 76, 76), *BLOB),
    "pinched conv": Case((64, 8, 128, 16), Glyphs, 20, 0.2, (0, 1), GLYPHS // 64, (1, 3, 16, 16)),
}


def train(
    model: nn.Module,
    runs: Runs,
    epochs: int,
    seed: int,
    rate: float = RATE,
    rule: Any = None,
) -> None:
    """SGD under a cosine, one epoch of warm-up; with a rule that runs networks of its own."""
    per_epoch = runs.case.per_epoch
    steps = epochs * per_epoch
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    is_iee = isinstance(rule, pk.IEE)
    if rule is not None and not is_iee:
        rule.begin(model, optimizer)
    warm = 0 if isinstance(rule, Halp) else min(per_epoch, steps // 2)
    model.train()
    for step, (points, labels) in enumerate(runs.data.batches(epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate if isinstance(rule, Halp) else _rate(step, steps, warm, rate)
        now = rule.model.train() if is_iee else model
        F.cross_entropy(now(points), labels).backward()
        if is_iee:
            rule.step(optimizer)
            continue
        if rule is not None:
            rule.after_backward(model, step)
        optimizer.step()
        if rule is not None:
            rule.after_step(model, optimizer, step)
        optimizer.zero_grad(set_to_none=True)


def _rate(step: int, steps: int, warm: int, rate: float) -> float:
    if step < warm:
        return rate * (step + 1) / warm
    done = torch.tensor((step - warm) / max(1, steps - warm))
    return float(rate * 0.5 * (1 + torch.cos(torch.pi * done)))


class Runs:
    """One seed's runs on one network, which share the dense training and what was found."""

    def __init__(self, name: str, seed: int, epochs: int | None = None) -> None:
        self.case, self.seed = CASES[name], seed
        self.epochs = epochs or self.case.epochs
        self.data = self.case.data(seed)
        self.graph = pk.trace(self.network().eval(), torch.randn(*self.case.example))
        self.budget = pk.Budget.parse(f"macs={self.case.share:.0%}")
        self.prices = cost_model(None, self.budget, 1)[0]
        self.trained: nn.Module | None = None

    def network(self, seed: int | None = None) -> nn.Module:
        """Fresh, from the run's seed or another."""
        return self.case.network(self.seed if seed is None else seed)

    def dense(self) -> nn.Module:
        """The dense network, trained once."""
        if self.trained is None:
            self.trained = self.network()
            train(self.trained, self, self.epochs, self.seed)
        return self.trained

    def result(self, model: nn.Module, cost: float, plan: pk.ChannelPlan | None) -> dict[str, Any]:
        """What a run is worth."""
        widths = None if plan is None else [plan.widths[g.id] for g in self.groups]
        accuracy = round(self.data.accuracy(model), 2)
        return {"accuracy": accuracy, "cost": round(cost, 3), "widths": widths}

    @property
    def groups(self) -> list[Any]:
        """Those that can be narrowed."""
        return [group for group in self.graph.groups if group.prunable]

    def share_of(self, plan: pk.ChannelPlan) -> float:
        """A plan's MACs as a share of dense."""
        return self.graph.macs(plan.widths) / self.graph.macs({})

    def run(self, method: str) -> dict[str, Any]:
        """One method."""
        if method == "dense":
            return self.result(self.dense(), 1.0, None)
        if method.startswith("uniform"):
            plan = uniform(self.graph, self.prices, self.case.share, 1, self.seed)
            return self.from_scratch(plan, 2 if method.endswith("twice") else 1, self.seed)
        if method.startswith("halp"):
            return self.halp("share" if method.endswith("shares") else "none")
        if method == "widths of iee joint":
            found = self.iee(JOINT, "none")
            return self.from_scratch(found, 1, self.seed + 9)
        if method == "widths of a long search by shares":
            return self.from_scratch(self.iee(LONG, "share"), 1, self.seed + 9)
        options = JOINT if "joint" in method else {}
        rule = self.searched(options, "share" if method.endswith("shares") else "none")
        cost = rule.work / (self.epochs * self.case.per_epoch)
        return self.result(rule.slim, cost, rule.plan)

    def from_scratch(self, plan: pk.ChannelPlan, times: int, seed: int) -> dict[str, Any]:
        """A narrow network of these widths, trained alone."""
        small = pk.slim(self.network(seed), plan)
        train(small, self, times * self.epochs, self.seed)
        return self.result(small, times * self.share_of(plan), plan)

    def searched(self, options: dict[str, Any], normalize: str) -> pk.IEE:
        """IEE from random weights."""
        model = self.network()
        schedule = pk.IEESchedule(self.epochs * self.case.per_epoch, seed=self.seed, **options)
        criterion = pk.Taylor(normalize=normalize)
        rule = pk.IEE(*(model, self.graph, None, self.budget, criterion, schedule), granularity=1)
        train(model, self, self.epochs, self.seed, rule=rule)
        return rule

    def iee(self, options: dict[str, Any], normalize: str) -> pk.ChannelPlan:
        """The plan that a search ends with."""
        return self.searched(options, normalize).plan

    def halp(self, normalize: str) -> dict[str, Any]:
        """From the dense network: a falling budget for a third of the epochs, then fine-tuning."""
        model, share = copy.deepcopy(self.dense()), self.case.share

        def solve(scores: Any, fraction: float, most: Any, least: Any) -> Any:
            budget = pk.Budget.share(fraction, self.budget.kind)
            limits: dict[str, Any] = {"granularity": 1, "at_most": most, "at_least": least}
            return allocate(self.graph, scores, None, budget, **limits)

        epochs = max(1, self.epochs // 3)
        steps = min(8, epochs * self.case.per_epoch)
        schedule = Schedule(steps, epochs * self.case.per_epoch // steps)
        rule = Halp(self.graph, pk.Taylor(normalize=normalize), solve, share, schedule, share * 1.1)
        train(model, self, epochs, self.seed + 50, RATE / 2, rule)
        plan = solve(rule.scores(), share, rule.plan.widths, {}).plan
        small = pk.slim(model, plan)
        train(small, self, self.epochs - epochs, self.seed + 60, RATE / 2)
        cost = 1 + epochs / self.epochs + (1 - epochs / self.epochs) * self.share_of(plan)
        return self.result(small, cost, plan)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and differences of pairs with their intervals."""
    by = {(r["net"], r["method"], r["seed"]): r for r in rows}
    tables: dict[str, Any] = {}
    for net, case in CASES.items():
        table = {}
        for method in METHODS:
            runs = [by[net, method, seed] for seed in case.seeds if (net, method, seed) in by]
            if runs:
                table[method] = {
                    "accuracy": [r["accuracy"] for r in runs],
                    "mean": round(mean(r["accuracy"] for r in runs), 2),
                    "cost": round(mean(r["cost"] for r in runs), 3),
                    "widths": [r["widths"] for r in runs],
                }
        claims = {}
        for one, other in (
            *(("iee joint", "uniform"), ("iee joint", "uniform twice"), ("iee joint", "iee")),
            *(
                ("iee joint", "halp"),
                ("iee joint", "widths of iee joint"),
                ("uniform twice", "uniform"),
            ),
            ("iee joint by shares", "iee joint"),
        ):
            pairs = [
                by[net, one, seed]["accuracy"] - by[net, other, seed]["accuracy"]
                for seed in case.seeds
                if (net, one, seed) in by and (net, other, seed) in by
            ]
            if pairs:
                claims[f"{one} - {other}"] = compared(pairs)
        tables[net] = {"methods": table, "differences": claims}
    return tables


def main() -> None:
    """All runs that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=300)
    parser.add_argument("--only", nargs="*", default=[*CASES], choices=[*CASES])
    parser.add_argument("--subset", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.subset:
        runs = Runs("pinched", 0, 12)
        for method in METHODS:
            print(method, runs.run(method))
        return
    stop = time.monotonic() + 60 * asked.minutes
    rows = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.is_file() else []
    known = {(r["net"], r["method"], r["seed"]) for r in rows}
    for net in asked.only:
        for seed in CASES[net].seeds:
            if all((net, method, seed) in known for method in METHODS):
                continue
            runs = Runs(net, seed)
            for method in METHODS:
                if (net, method, seed) in known or time.monotonic() > stop:
                    continue
                began = time.monotonic()
                row = {"net": net, "method": method, "seed": seed, **runs.run(method)}
                row |= {"seconds": round(time.monotonic() - began, 1), "code": code()}
                rows.append(row)
                with LOG.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    save("iee_structure", {"nets": summary(rows)})


if __name__ == "__main__":
    main()
