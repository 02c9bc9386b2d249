"""How good allocations are, how fast they are proved, and where they land when measured.

    python benchmarks/allocation.py                    everything, resumed where it stopped
    python benchmarks/allocation.py --only proofs rivals
    python benchmarks/allocation.py --summary

``proofs``: the joint solver's certified gap, time on one core and peak memory. ``rivals``: what
other solvers lose at the latency they really land on, in units of what the joint optimum at that
latency loses, on a smooth and a hard synthetic device and on a measured table. ``landings``: whole
runs of ``prunekit prune`` without training on ONNX Runtime, against the band they have to land in.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, prunekit

import prunekit as pk
from prunekit.allocation.allocate import build_problem
from prunekit.allocation.costs import CostModel, LatencyCost, total
from prunekit.allocation.solvers import (
    Allocator,
    Greedy,
    Joint,
    Knapsack,
    Problem,
    Solution,
    Uniform,
)
from prunekit.core.graph import ChannelGraph, Layer
from prunekit.core.target import cpu_environment, package_version
from prunekit.profiling.choosing import random_scores

CACHE = Path(__file__).parent / ".cache" / "allocation"
PROOFS = {
    "torchvision:resnet50": (0.8, 0.5, 0.3, 0.15),
    "torchvision:resnet152": (0.5,),
    "torchvision:densenet121": (0.5,),
    "torchvision:efficientnet_b0": (0.5,),
    "torchvision:mobilenet_v2": (0.5,),
    "torchvision:googlenet": (0.5,),
    "torchvision:regnet_y_400mf": (0.5,),
    "timm:hrnet_w18": (0.5,),
}
GRANULARITY = 8
RIVALS = ("torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:resnet18")
SHARES = (0.8, 0.5, 0.3)
LANDINGS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")
TARGETS = (75, 50, 35)


@dataclass(frozen=True)
class Smooth:
    """A roofline: a cost per call, plus what takes longer, multiply-adds or bytes."""

    per_call: float = 5e-3
    macs_per_ms: float = 1e8
    values_per_ms: float = 1e7
    unit: str = "ms"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: Any, cout: Any) -> np.ndarray:
        """Milliseconds."""
        cin, cout = np.asarray(cin, dtype=np.float64), np.asarray(cout, dtype=np.float64)
        shape = layer.shape
        before, after = np.prod(shape.in_hw or (1,)), np.prod(shape.out_hw or (1,))
        kernel = np.prod(shape.kernel or (1,))
        fan_in = 1.0 if layer.kind == "depthwise" else cin / shape.groups
        macs = fan_in * cout * kernel * after
        values = cin * before + cout * after + fan_in * cout * kernel
        return layer.calls * (self.per_call + macs / self.macs_per_ms + values / self.values_per_ms)


@dataclass(frozen=True)
class Hard:
    """Output tiles of 64, a few percent of ripple, a penalty off multiples of 32."""

    smooth: Smooth = Smooth()
    unit: str = "ms"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: Any, cout: Any) -> np.ndarray:
        """Milliseconds."""
        cin, cout = np.broadcast_arrays(np.asarray(cin), np.asarray(cout))
        tiled = np.ceil(cout / 64) * 64
        left = np.ceil(cin / 64) * 64 if layer.kind == "depthwise" else cin
        base = self.smooth.layer(layer, left, tiled)
        ripple = 1 + 0.03 * np.sin(0.7 * cin + 1.3 * cout)
        off = 1 + 0.15 * ((cin % 32 > 0) | (cout % 32 > 0))
        return base * ripple * off


def network(name: str) -> tuple[torch.nn.Module, ChannelGraph]:
    """An untrained network and its channel graph."""
    from prunekit.networks.saved import open_model

    torch.manual_seed(0)
    module = open_model(name, num_classes=None, in_channels=3, pretrained=False).module.eval()
    return module, pk.trace(module, torch.zeros(1, 3, 224, 224))


# --- proofs -------------------------------------------------------------------------------------


def proofs() -> Iterator[dict[str, Any]]:
    """One process per network, so that peak memory is its own."""
    for name in PROOFS:
        held = CACHE / f"proof-{name.replace(':', '_')}.json"
        if not held.is_file():
            command = [sys.executable, __file__, "--prove", name, str(held)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        yield from json.loads(held.read_text())


def prove(name: str) -> list[dict[str, Any]]:
    """Solve at every budget; the best of two times, in seconds of one core."""
    _, graph = network(name)
    scores = random_scores(graph, np.random.default_rng(0))
    found = []
    for device, costs in (("smooth", Smooth()), ("hard", Hard())):
        dense = total(graph, {}, costs)
        for share in PROOFS[name]:
            seconds = []
            for _ in range(2):
                problem = build_problem(graph, scores, costs, share * dense, GRANULARITY)
                started = time.process_time()
                solution = Joint().solve(problem)
                seconds.append(time.process_time() - started)
            found.append(
                {
                    "model": name,
                    "device": device,
                    "share": share,
                    "groups": len(problem.variables),
                    "gap": solution.gap,
                    "status": solution.status,
                    "seconds": round(min(seconds), 3),
                    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


# --- rivals -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stepwise:
    """HALP's schedule: a knapsack per step, budgets falling geometrically to the last."""

    steps: int = 30

    def solve(self, problem: Problem) -> Solution:
        """The last step's plan; widths never grow again."""
        present = {v.name: v.widths[-1] for v in problem.variables}
        dense = problem.cost(present)
        for budget in np.geomspace(dense, problem.budget, self.steps + 1)[1:]:
            variables = tuple(
                replace(v, widths=w, values=v.values[: len(w)])
                for v in problem.variables
                for w in [tuple(x for x in v.widths if x <= present[v.name])]
            )
            now = replace(problem, variables=variables, budget=float(budget), start=present)
            solution = Knapsack().solve(now)
            present = solution.widths
        return solution


SOLVERS: dict[str, Callable[[], Allocator]] = {
    "knapsack, one shot": Knapsack,
    "knapsack, 30 steps": Stepwise,
    "greedy": Greedy,
    "greedy, long jumps": lambda: Greedy(jumps=True),
    "uniform": Uniform,
}


def rivals(tables: Path | None) -> Iterator[dict[str, Any]]:
    """Every solver against the joint one at the latency it really lands on."""
    for name in RIVALS:
        held = CACHE / f"rivals-{name.replace(':', '_')}.json"
        if not held.is_file():
            held.write_text(json.dumps(list(_rivals(name, tables))))
        yield from json.loads(held.read_text())


def _rivals(name: str, tables: Path | None) -> Iterator[dict[str, Any]]:
    _, graph = network(name)
    devices: dict[str, CostModel] = {"smooth": Smooth(), "hard": Hard()}
    measured = tables and tables / f"{name.split(':')[1]}.json"
    if measured and measured.is_file():
        devices["measured"] = LatencyCost(pk.LatencyTable.load(measured))
    for device, costs in devices.items():
        step = GRANULARITY
        if isinstance(costs, LatencyCost):
            step = costs.table.granularity
        dense = total(graph, {}, costs)
        for seed in range(3):
            scores = random_scores(graph, np.random.default_rng(seed))
            for share in SHARES:
                problem = build_problem(graph, scores, costs, share * dense, step)
                best = sum(v.values[-1] for v in problem.variables)
                for label, make in SOLVERS.items():
                    started = time.process_time()
                    solution = make().solve(problem)
                    seconds = time.process_time() - started
                    at = replace(problem, budget=solution.cost * (1 + 1e-12))
                    joint = Joint().solve(at)
                    lost = best - joint.value
                    row = {
                        "model": name,
                        "device": device,
                        "seed": seed,
                        "share": share,
                        "solver": label,
                        "landed": round(solution.cost / dense, 4),
                        "extra_loss": round((best - solution.value) / max(lost, 1e-12), 4),
                        "joint_gap": joint.gap,
                        "seconds": round(seconds, 3),
                    }
                    print(json.dumps(row), flush=True)
                    yield row


# --- landings -----------------------------------------------------------------------------------


def landings(tables: Path) -> Iterator[dict[str, Any]]:
    """Runs without training; the band begins 2 %, or a step of the cheapest group, below."""
    for name in LANDINGS:
        table = tables / f"{name}.json"
        if not table.is_file():
            flags = ("profile", f"torchvision:{name}", "-o", str(table))
            status, *_ = prunekit(*flags)
            if status:
                raise SystemExit(f"profile of {name}: exit {status}")
        for percent in TARGETS:
            held = CACHE / f"landing-{name}-{percent}.json"
            if not held.is_file():
                held.write_text(json.dumps(_landing(name, percent, table)))
            yield json.loads(held.read_text())


def _landing(name: str, percent: int, table: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        status, report, seconds = prunekit(
            *("prune", f"torchvision:{name}", "--epochs", "0", "--target-latency", f"{percent}%"),
            *("--table", str(table), "-o", str(out)),
        )
        _, graph = network(f"torchvision:{name}")
        step = cheapest_step(graph, pk.LatencyTable.load(table), report["widths"])
    latency = report["latency"]
    row = {
        "model": name,
        "target": percent / 100,
        "ratio": latency["ratio"],
        "ratio_ci": latency["ratio_ci"],
        "met": latency["met"],
        "exit": status,
        "step": round(step, 5),
        "in_band": percent / 100 - max(0.02, step) <= latency["ratio"] <= percent / 100,
        "rounds": len(report["landing"]),
        "seconds": round(seconds, 1),
        "environment": report["environment"],
    }
    print(json.dumps({k: v for k, v in row.items() if k != "environment"}), flush=True)
    return row


def cheapest_step(
    graph: ChannelGraph, table: pk.LatencyTable, widths: dict[str, list[int]]
) -> float:
    """What one step of the group whose step costs least takes, as a share of dense."""
    costs = LatencyCost(table)
    now = {group: pair[1] for group, pair in widths.items()}
    base, dense = total(graph, now, costs), total(graph, {}, costs)
    found = []
    for group in graph.groups:
        if group.prunable:
            allowed = group.widths(table.granularity)
            place = allowed.index(now[group.id])
            if place + 1 < len(allowed):
                wider = total(graph, now | {group.id: allowed[place + 1]}, costs)
                found.append(abs(wider - base) / dense)
    return min(found, default=0.0)


# --- what it says -------------------------------------------------------------------------------


def summarise(parts: dict[str, list[dict[str, Any]]]) -> None:
    """Write allocation.json and allocation.md."""
    packages = {name: package_version(name) for name in ("prunekit", "numpy", "scipy")}
    environment = asdict(cpu_environment("numpy", packages))
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps({"environment": environment, **parts}, indent=1)
    (RESULTS / "allocation.json").write_text(content + "\n")
    text = [
        "# Allocation",
        "",
        f"Written by `python benchmarks/allocation.py` on {environment['device_name']}.",
        "",
    ]
    if parts["proofs"]:
        text += [
            f"## Proved gap of the joint solver, granularity {GRANULARITY}",
            "",
            "| network | device | budget | groups | gap | seconds | peak MB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {r['model']} | {r['device']} | {r['share']:.0%} | {r['groups']} | "
                f"{r['gap']:.4%} | {r['seconds']:.2f} | {r['peak_mb']} |"
                for r in parts["proofs"]
            ),
            "",
        ]
    if parts["rivals"]:
        text += [
            "## What others lose, in units of what the joint optimum loses at the same latency",
            "",
            "Mean over three draws of scores (worst); `landed` is the true latency of the plan. A "
            "solver that stays over its budget, since no single step saves anything, has no loss.",
            "",
            "| network | device | budget | solver | extra loss | landed | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        keys = ("model", "device", "share", "solver")
        cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in parts["rivals"]:
            cells.setdefault(tuple(row[k] for k in keys), []).append(row)
        for (model, device, share, solver), rows in cells.items():
            losses = [row["extra_loss"] for row in rows]
            landed = np.mean([row["landed"] for row in rows])
            seconds = np.mean([row["seconds"] for row in rows])
            loss = f"{np.mean(losses):.2f} ({max(losses):.2f})"
            if max(row["landed"] for row in rows) > 1.001 * share:
                loss = "over the budget"
            text.append(
                f"| {model} | {device} | {share:.0%} | {solver} | {loss} | {landed:.1%} | "
                f"{seconds:.2f} |"
            )
        text.append("")
    if parts["landings"]:
        text += [
            "## Measured landings on ONNX Runtime",
            "",
            "| network | asked | measured, 95 % interval | in the band | rounds | seconds |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {r['model']} | {r['target']:.0%} | {r['ratio']:.1%} [{r['ratio_ci'][0]:.1%}, "
                f"{r['ratio_ci'][1]:.1%}] | {'yes' if r['in_band'] else 'no'} | {r['rounds']} | "
                f"{r['seconds']:.0f} |"
                for r in parts["landings"]
            ),
            "",
        ]
    (RESULTS / "allocation.md").write_text("\n".join(text))
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ("proofs", "rivals", "landings")
    parser.add_argument("--only", nargs="*", default=every, choices=every)
    parser.add_argument("--tables", type=Path, default=CACHE / "tables", help="measured tables")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    parser.add_argument("--prove", nargs=2)
    arguments = parser.parse_args()
    if arguments.prove:
        name, out = arguments.prove
        Path(out).write_text(json.dumps(prove(name)))
        return
    arguments.tables.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "allocation.json"
    parts = json.loads(kept.read_text()) if kept.is_file() else {}
    parts = {name: parts.get(name, []) for name in every}
    makers: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "landings": lambda: landings(arguments.tables),
        "proofs": proofs,
        "rivals": lambda: rivals(arguments.tables),
    }
    for name, make in makers.items():  # landings make the tables that rivals use
        if name in arguments.only and not arguments.summary:
            parts[name] = list(make())
    summarise(parts)


if __name__ == "__main__":
    main()
