"""Tries settings of IEE on the validation images, at the latency that the table predicts.

    python -m benchmarks.iee_channels.search resnet20_w32 30% uniform
    python -m benchmarks.iee_channels.search resnet20_w32 30% iee warmup=187 --criterion taylor
    python -m benchmarks.iee_channels.search resnet20_w32 30% iee --pretrained --lr 0.2 --seeds 0 1

Each run is a line of results/iee_search.jsonl. ``uniform`` is the control: the narrow net of even
widths, trained as long. ``run.py`` then measures what was chosen, on the test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import prunekit as pk
from benchmarks.iee_channels.plan import CASES, Run
from benchmarks.iee_channels.results import dense_weights, table_of
from benchmarks.iee_channels.training import data_of, network
from prunekit.allocation import uniform
from prunekit.allocation.allocate import cost_model
from prunekit.networks.weights import load_weights
from prunekit.pipeline.examples import example_input
from prunekit.pipeline.recipes.base import pairs
from prunekit.support.registry import criteria
from prunekit.train import TrainConfig, fit

RESULTS = Path(__file__).parents[1] / "results" / "iee_search.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("target")
    parser.add_argument("method", choices=["iee", "uniform"])
    parser.add_argument("options", nargs="*", help="fields of IEESchedule, KEY=VALUE")
    parser.add_argument("--pretrained", action="store_true", help="from the case's dense network")
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        row = {**vars(asked), "seed": seed, **one(asked, seed)}
        row.pop("seeds")
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {k: row[k] for k in ("seed", "val", "work", "seconds", "by_epoch", "widths")}
        print(asked.method, " ".join(asked.options), json.dumps(shown), flush=True)


def one(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One training; ``work`` is its FLOPs over those of one dense training run."""
    case = CASES[asked.case]
    data = data_of(case)
    torch.manual_seed(seed)
    model = network(case, data).module
    if asked.pretrained:
        load_weights(model, dense_weights(Run(asked.case, "dense", seed)))
    graph = pk.trace(model.eval(), example_input(case.input))
    table = pk.LatencyTable.load(table_of(asked.case))
    budget = pk.Budget.parse(f"latency={asked.target}")
    config = TrainConfig(
        epochs=asked.epochs or case.epochs,
        batch_size=case.batch_size,
        lr=asked.lr or (case.fine_tune_lr if asked.pretrained else case.lr),
        mixed_precision=case.precision,
        seed=seed,
    )
    per_epoch = len(data.train) // case.batch_size  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []
    if asked.method == "uniform":
        plan = uniform(graph, cost_model(table, budget, None)[0], budget.value, table.granularity)
        found = fit(pk.slim(model, plan), data, config, log=rows.append)
        share = graph.macs(plan.widths) / graph.macs({})
        more: dict[str, Any] = {"work": share * config.epochs / case.epochs}
    else:
        start = "dense" if asked.pretrained else "uniform"
        options = {"start": start, "seed": seed, **pairs(asked.options, "option")}
        schedule = pk.IEESchedule.parse(config.epochs * per_epoch, options)
        rule = pk.IEE(model, graph, table, budget, criteria.make(asked.criterion), schedule)
        found = fit(model, data, config, rule=rule, log=rows.append)
        plan = rule.plan
        more = {
            "work": rule.work / (case.epochs * per_epoch),
            "lengths": schedule.lengths,
            "cycles": len(rule.history),
            "iou": [round(row["iou"], 3) for row in rule.history],
            "survival": rule.survival(),
        }
    return {
        "val": found.accuracy,
        "seconds": round(found.seconds),
        "by_epoch": [round(row["accuracy"], 3) for row in rows if "epoch" in row],
        "widths": [plan.widths[group.id] for group in graph.groups if group.prunable],
        **more,
    }


if __name__ == "__main__":
    main()
