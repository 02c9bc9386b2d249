"""What ``run.py`` compares with, outside the command line: controls and a rival."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunekit as pk
from benchmarks.iee_channels.plan import Run
from benchmarks.iee_channels.results import done
from benchmarks.iee_channels.training import data_of, measured, network, scores, target_of, train
from prunekit.allocation import uniform
from prunekit.allocation.costs import LatencyCost
from prunekit.networks.saved import save_weights
from prunekit.pipeline.examples import example_input
from prunekit.pipeline.table import make_table
from prunekit.profiling import HarvestPlan
from prunekit.train import Data


def carry_out(run: Run, case: Any, table_of: Any, dense_weights: Any) -> dict[str, Any]:
    """One run; ``run.method`` says which."""
    torch.manual_seed(run.seed)
    data = data_of(case)
    model = network(case, data).module
    if run.method == "table":
        graph = pk.trace(model.eval(), example_input(case.input))
        target = target_of(case)
        path = table_of(run.case)
        journal = path.with_suffix(".jsonl")
        make_table(
            *(model, graph, example_input(case.input), target, path),
            journal=journal,
            plan=HarvestPlan(4, max_seconds=10) if run.case == "subset" else HarvestPlan(12),
            granularity=None,
            name=case.model,
            resume=False,
        )
        return {"mape": pk.LatencyTable.load(path).calibration.mape}
    if run.method == "dense":
        found = train(model, data, case, case.lr)
        save_weights(model, dense_weights(run))
        return found | scores(model, case) | {"relative_flops": 1.0}
    if run.method.startswith("uniform"):
        return uniform_net(run, case, model, data, table_of(run.case))
    if run.method == "halp-widths":
        return widths_of_halp(run, case, model, data)
    if run.method.startswith("torch-pruning"):
        from benchmarks.iee_channels.rival import rival

        return rival(run, case, model, data, dense_weights(run))
    raise SystemExit(f"unknown method {run.method}")


def uniform_net(run: Run, case: Any, model: nn.Module, data: Data, table: Path) -> dict[str, Any]:
    """The narrow net of the same shape, trained from scratch: as long, or at twice the epochs."""
    import tempfile

    graph = pk.trace(model.eval(), example_input(case.input))
    costs = LatencyCost(pk.LatencyTable.load(table))
    wanted = float(run.target.rstrip("%")) / 100
    low, high, found = 0.0, min(1.0, 2 * wanted), None
    asked = wanted
    block = costs.table.granularity
    seen: set[tuple[int, ...]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(8):
            plan = uniform(graph, costs, asked, block)
            widths = tuple(plan.widths.values())
            if widths not in seen:
                seen.add(widths)
                timed = measured(model, pk.slim(model, plan), case, Path(folder))
                met = timed.ratio <= wanted * 1.005
                if met and (found is None or timed.ratio > found[1].ratio):
                    found = plan, timed
            low, high = (asked, high) if met else (low, asked)
            asked = (low + high) / 2
    if found is None:
        raise SystemExit("no uniform net is fast enough")
    plan, ratio = found
    times = run.options.get("times", 2 if run.method == "uniform-long" else 1)
    timed = {"ratio": ratio.ratio, "ratio_ci": [ratio.low, ratio.high]}
    return timed | from_scratch(run, case, graph, data, plan, times)


def from_scratch(
    run: Run, case: Any, graph: pk.ChannelGraph, data: Data, plan: pk.ChannelPlan, times: int = 1
) -> dict[str, Any]:
    """Train ``plan``'s widths from random weights."""
    torch.manual_seed(run.seed + 100)
    small = pk.slim(network(case, data).module, plan)
    started = time.time()
    result = train(small, data, case, case.lr, times)
    macs = graph.macs(plan.widths) / graph.macs({})
    return {
        **result,
        **scores(small, case),
        "relative_flops": times * macs,
        "macs_ratio": macs,
        "widths": plan.widths,
        "took": time.time() - started,
    }


def widths_of_halp(run: Run, case: Any, model: nn.Module, data: Data) -> dict[str, Any]:
    """The widths that HALP ended with, trained as long as the dense network."""
    (halp,) = (
        row
        for row in done().values()
        if all(row[k] == getattr(run, k) for k in ("case", "seed", "target", "criterion"))
        and row["method"] == "halp"
    )
    graph = pk.trace(model.eval(), example_input(case.input))
    plan = pk.ChannelPlan.from_widths(graph, halp["widths"])
    timed = {key: halp[key] for key in ("ratio", "ratio_ci")}
    return timed | from_scratch(run, case, graph, data, plan)
