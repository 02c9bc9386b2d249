"""What IEE from scratch takes in seconds, against the dense training it replaces.

    python -m benchmarks.iee_channels.seconds                   all networks, 15 minutes
    python -m benchmarks.iee_channels.seconds vgg11_bn --epochs 2     one, the others are kept

Both trainings run at the same time, each on a core of its own, and then once more with the cores
exchanged: what slows the machine slows both. Nothing else should run. A shorter training has
shorter stages and so relatively more switches between networks: the ratio can only be lower in the
full one. ``run.py`` records seconds too, but of runs that others ran beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import RESULTS, save
from benchmarks.iee_channels.plan import CASES
from benchmarks.iee_channels.results import table_of
from benchmarks.iee_channels.training import data_of, network

HERE = Path(__file__).parents[1]
TARGET = "30%"


def one(name: str, method: str, epochs: int, core: int) -> dict[str, float]:
    """One training on one core: its seconds, and for IEE its share of the FLOPs."""
    os.sched_setaffinity(0, {core})
    import torch

    import prunekit as pk
    from prunekit.pipeline.examples import example_input
    from prunekit.train import TrainConfig, fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = replace(CASES[name], epochs=epochs)
    data = data_of(case)
    model = network(case, data).module
    config = TrainConfig(
        epochs=epochs, batch_size=case.batch_size, lr=case.lr, mixed_precision=case.precision
    )
    if method == "dense":
        return {"seconds": fit(model, data, config).seconds}
    graph = pk.trace(model.eval(), example_input(case.input))
    steps = epochs * (len(data.train) // case.batch_size)  # type: ignore[arg-type]
    table, budget = pk.LatencyTable.load(table_of(name)), pk.Budget.parse(f"latency={TARGET}")
    rule = pk.IEE(model, graph, table, budget, schedule=pk.IEESchedule(steps))
    found = fit(model, data, config, rule=rule)
    return {"seconds": found.seconds, "flops": rule.work / steps, "cycles": len(rule.history)}


def pair(name: str, epochs: int) -> dict[str, Any]:
    """Both trainings side by side, twice."""
    ratios, iee = [], {}
    for turn in range(2):
        running = []
        for core, method in enumerate(("dense", "iee") if turn == 0 else ("iee", "dense")):
            command = [
                sys.executable,
                "-m",
                "benchmarks.iee_channels.seconds",
                name,
                "--epochs",
                str(epochs),
            ]
            command += ["--one", method, "--core", str(core)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
            running.append((method, started))
        found = {}
        for method, process in running:
            text, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name}, {method}: exit {process.returncode}")
            found[method] = json.loads(text.splitlines()[-1])
        iee = found["iee"]
        ratios.append(iee["seconds"] / found["dense"]["seconds"])
        print(f"{name}: {ratios[-1]:.3f} of the dense seconds, {iee['flops']:.3f} of the FLOPs")
    return {
        "case": name,
        "target": TARGET,
        "epochs": epochs,
        "relative_seconds": math.exp(mean(map(math.log, ratios))),
        "both": ratios,
        "relative_flops": iee["flops"],
        "cycles": iee["cycles"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name in CASES if name not in ("digits", "subset")]
    parser.add_argument("cases", nargs="*", default=known)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--one", choices=("dense", "iee"))
    parser.add_argument("--core", type=int, default=0)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.cases[0], asked.one, asked.epochs, asked.core)))
        return
    from prunekit.core.target import cpu_environment, package_version

    environment = asdict(cpu_environment(f"torch {package_version('torch')}"))
    kept = RESULTS / "iee_channels_seconds.json"
    rows = json.loads(kept.read_text())["rows"] if kept.is_file() else []
    for name in asked.cases:
        row = {**pair(name, asked.epochs), "environment": environment}
        rows = [*(other for other in rows if other["case"] != name), row]
    save("iee_channels_seconds", {"rows": rows})


if __name__ == "__main__":
    main()
