"""Tables and plots of ``run.py`` from its runs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.iee_channels.claims import claims

NAMES = {
    "iee": "IEE, from scratch",
    "iee-pretrained": "IEE, from pretrained",
    "halp": "HALP, iterative",
    "oneshot": "one-shot",
    "uniform": "uniform narrow net, from scratch",
    "uniform-long": "uniform narrow net, twice the epochs",
    "halp-widths": "HALP's widths, from scratch",
    "torch-pruning": "Torch-Pruning, local",
    "torch-pruning-global": "Torch-Pruning, global",
    "dense": "dense",
}


def summarise(everything: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """One entry per case, target, method and criterion; writes JSON, Markdown and plots.

    Of a run repeated the last counts.
    """
    rows = list({row["key"]: row for row in everything}.values())
    cells: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["method"] != "table":
            label = row["note"] or ", ".join(f"{k}={v}" for k, v in row["options"].items())
            key = row["case"], row["target"], row["method"], row["criterion"], label
            cells[key].append(row)
    found = [
        {
            "case": case,
            "target": target,
            "method": method,
            "criterion": criterion,
            "variation": label,
            "seeds": len(runs),
            "test": spread(100 * run["test"] for run in runs),
            "latency_ratio": spread(100 * run.get("ratio", 1.0) for run in runs),
            "latency_range": [
                round(100 * f(r.get("ratio", 1.0) for r in runs), 2) for f in (min, max)
            ],
            "relative_flops": spread(run["relative_flops"] for run in runs),
        }
        for (case, target, method, criterion, label), runs in sorted(cells.items())
    ]
    result = {"environments": environments(rows), "cells": found}
    (folder / "iee_channels.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "iee_channels.md").write_text(f"{claims(rows, folder)}\n{markdown(found)}")
    plot(found, folder)
    return result


def environments(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The machines that runs were carried out on, each with their number."""
    texts = Counter(
        json.dumps({k: v for k, v in row["environment"].items() if k not in ("created", "clocks")})
        for row in rows
        if "environment" in row
    )
    return [{"runs": count, **json.loads(text)} for text, count in texts.items()]


def spread(values: Any) -> tuple[float, float]:
    """Mean and standard deviation, which is zero of one value."""
    held = list(values)
    if not held:
        return float("nan"), 0.0
    return round(mean(held), 4), round(stdev(held), 4) if len(held) > 1 else 0.0


def markdown(cells: list[dict[str, Any]]) -> str:
    """A table per case and target."""
    lines = ["# IEE for channels: accuracy and measured latency", ""]
    for case, target in sorted({(c["case"], c["target"]) for c in cells}):
        lines += [f"## {case}, {target or 'dense'}", ""]
        lines += ["| method | criterion | seeds | test accuracy | latency | FLOPs |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        here = [c for c in cells if (c["case"], c["target"]) == (case, target)]
        for cell in sorted(here, key=lambda c: -c["test"][0]):
            name = NAMES.get(cell["method"], cell["method"])
            name += f" ({cell['variation']})" if cell["variation"] else ""
            accuracy = "{:.2f} ± {:.2f} %".format(*cell["test"])
            low, high = cell["latency_range"]
            latency = f"{low:.1f} %" if low == high else f"{low:.1f} to {high:.1f} %"
            flops = f"{cell['relative_flops'][0]:.2f}"
            parts = [name, cell["criterion"] or "-", str(cell["seeds"]), accuracy, latency, flops]
            lines.append(f"| {' | '.join(parts)} |")
        lines.append("")
    return "\n".join(lines)


def plot(cells: list[dict[str, Any]], folder: Path) -> None:
    """Accuracy over training cost, a panel per case and target."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prunekit"
    from matplotlib import pyplot

    panels = sorted({(c["case"], c["target"]) for c in cells if c["target"]})
    if not panels:
        return
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 3.4 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (case, target) in zip(axes[:, 0], panels, strict=True):
        for cell in cells:
            if cell["case"] != case or cell["target"] not in (target, "") or cell["variation"]:
                continue
            marker = {"taylor": "o", "magnitude": "s", "random": "x"}.get(cell["criterion"], "D")
            colour = f"C{list(NAMES).index(cell['method'])}"
            axis.errorbar(
                cell["relative_flops"][0],
                cell["test"][0],
                yerr=cell["test"][1],
                fmt=marker,
                color=colour,
                label=f"{NAMES[cell['method']]} {cell['criterion']}".strip(),
                capsize=2,
            )
        axis.set_title(f"{case} at {target} of the dense latency")
        axis.set_xlabel("training FLOPs / one dense training run")
        axis.set_ylabel("test accuracy, %")
        axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(folder / "iee_channels.svg", metadata={"Date": None})
    pyplot.close(figure)
