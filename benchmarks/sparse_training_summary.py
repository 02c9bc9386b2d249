"""Tables and plots of ``sparse_training.py`` from its runs."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

NAME = "sparse_training"
NAMES = {
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "gmp": "GMP",
    "iee": "IEE",
    "dense": "dense",
}
ORDER = ("static", "set", "rigl", "iee")
"""From the weakest on, as the literature has it."""


def summarise(rows: list[dict[str, Any]], steps: list[dict[str, Any]], folder: Path) -> None:
    """Write JSON, Markdown and a plot."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[tuple(row[key] for key in KEY)].append(row)
    found = [{**dict(zip(KEY, key, strict=True)), **cell(runs)} for key, runs in cells.items()]
    result = {
        "cells": found,
        "order": orders(rows),
        "equal_flops": equal_flops(found),
        "steps": steps,
        "environment": rows[0]["environment"] if rows else None,
    }
    (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(markdown(result))
    plot(found, folder)


KEY = ("case", "method", "level", "distribution", "pattern", "length", "from_dense", "note")


def cell(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds."""
    return {
        "seeds": len(runs),
        "test": spread(100 * run["test"] for run in runs),
        "relative_flops": spread(run["relative_flops"] for run in runs),
        "seconds": spread(run["seconds"] for run in runs),
        "survival": spread(run["survival"] for run in runs if run.get("survival") is not None),
        "next_survival": spread(
            run["next_survival"] for run in runs if run.get("next_survival") is not None
        ),
        "last_iou": spread(run["iou"][-1] for run in runs if run.get("iou")),
        "inputless": spread(run["inputless"] for run in runs if "inputless" in run),
    }


def spread(values: Any) -> tuple[float, float] | None:
    """Mean and standard deviation, which is zero of one value."""
    held = list(values)
    if not held:
        return None
    return round(mean(held), 4), round(stdev(held), 4) if len(held) > 1 else 0.0


def plain(one: dict[str, Any], **changes: Any) -> bool:
    """Whether a row is a method's own form, but for ``changes``."""
    wanted = {
        "distribution": "erk",
        "pattern": "unstructured",
        "length": 1,
        "from_dense": False,
        "note": "",
        **changes,
    }
    return all(one[key] == value for key, value in wanted.items())


def orders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method against the one before it, paired by seed: the difference in points."""
    tests = {
        (r["case"], r["level"], r["distribution"], r["method"], r["seed"]): 100 * r["test"]
        for r in rows
        if plain(r, distribution=r["distribution"])
    }
    found = []
    for case, level, distribution in sorted({key[:3] for key in tests if key[1]}):
        for lower, upper in pairwise(ORDER):
            seeds = sorted({k[4] for k in tests if k[:4] == (case, level, distribution, upper)})
            here = (case, level, distribution)
            pairs = [
                tests[(*here, upper, seed)] - tests[(*here, lower, seed)]
                for seed in seeds
                if (*here, lower, seed) in tests
            ]
            if pairs:
                found.append(
                    {
                        "case": case,
                        "level": level,
                        "distribution": distribution,
                        "pair": f"{NAMES[upper]} - {NAMES[lower]}",
                        "difference": spread(pairs),
                        "holds": mean(pairs) >= 0,
                    }
                )
    return found


def equal_flops(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every form of IEE against RigL trained as long as to cost the same.

    RigL's accuracy in between lengths is read off a straight line over the logarithm of FLOPs;
    beyond its lengths nothing is claimed.
    """
    found = []
    for one in cells:
        if one["method"] != "iee" or not plain(one, length=one["length"], note=one["note"]):
            continue
        curve = sorted(
            (c["relative_flops"][0], c["test"][0], c["test"][1])
            for c in cells
            if (c["case"], c["level"], c["method"]) == (one["case"], one["level"], "rigl")
            and plain(c, length=c["length"])
        )
        cost = one["relative_flops"][0]
        if len(curve) < 2 or not curve[0][0] <= cost <= curve[-1][0]:
            continue
        right = next(i for i, point in enumerate(curve) if point[0] >= cost)
        (x0, y0, s0), (x1, y1, s1) = curve[max(0, right - 1)], curve[max(1, right)]
        part = math.log(cost / x0) / math.log(x1 / x0)
        at = y0 + part * (y1 - y0)
        found.append(
            {
                "case": one["case"],
                "level": one["level"],
                "form": one["note"] or "as published",
                "length": one["length"],
                "relative_flops": cost,
                "iee": one["test"],
                "rigl": (round(at, 4), round(max(s0, s1), 4)),
                "difference": round(one["test"][0] - at, 4),
            }
        )
    return sorted(found, key=lambda f: (f["case"], f["level"], -f["difference"]))


# --- Markdown -----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """All tables."""
    cells, lines = result["cells"], ["# Sparse training of weights", ""]
    if result["environment"]:
        where = result["environment"]
        lines += [
            f"One thread of {where['device_name']}, torch {where['torch']}. Mean and standard "
            "deviation over seeds, on test images.",
            "",
        ]
    for case in sorted({c["case"] for c in cells}):
        lines += [f"## {case}", "", "### Equal steps", ""]
        lines += equal_steps([c for c in cells if c["case"] == case])
    lines += ["## Order: each method less the one before, paired by seed", ""]
    lines += table(
        ("case", "sparsity", "difference", "points", "holds"),
        [
            (
                o["case"],
                f"{o['level']} {o['distribution']}",
                o["pair"],
                text(o["difference"]),
                "yes" if o["holds"] else "no",
            )
            for o in result["order"]
        ],
    )
    lines += ["## Equal training FLOPs: IEE against RigL trained longer", ""]
    lines += table(
        ("case", "sparsity", "form of IEE", "epochs", "FLOPs / dense", "IEE", "RigL", "IEE - RigL"),
        [
            (
                *(f["case"], f["level"], f["form"], f"{f['length']}x"),
                f"{f['relative_flops']:.3f}",
                *(text(f["iee"]), text(f["rigl"]), f"{f['difference']:+.2f}"),
            )
            for f in result["equal_flops"]
        ],
    )
    lines += ["## Parts of IEE (ablation), and cheaper forms", ""]
    lines += table(
        ("case", "sparsity", "form", "seeds", "test accuracy", "FLOPs / dense", "survival"),
        [
            (
                *(c["case"], c["level"], c["note"] or "as published", str(c["seeds"])),
                *(text(c["test"]), text(c["relative_flops"], 3), text(c["survival"], 3)),
            )
            for c in sorted(cells, key=lambda c: (c["case"], c["level"], -c["test"][0]))
            if c["method"] == "iee" and plain(c, note=c["note"])
        ],
    )
    lines += ["## 2:4", ""]
    lines += table(
        ("case", "method", "from", "epochs", "seeds", "test accuracy", "FLOPs / dense"),
        [
            (
                *(c["case"], f"{NAMES[c['method']]} 2:4"),
                "a trained network's largest weights" if c["from_dense"] else "random weights",
                f"{c['length'] + c['from_dense']}x",
                *(str(c["seeds"]), text(c["test"]), text(c["relative_flops"], 3)),
            )
            for c in cells
            if c["pattern"] == "2:4"
        ],
    )
    lines += ["## Step time over a dense step, interleaved, at 90 %", ""]
    lines += table(
        ("case", "method", "dense step (ms)", "ratio", "range over blocks", "of it exploring"),
        [
            (
                *(s["case"], NAMES[s["method"]], f"{s['dense_step_ms']:.2f}"),
                *(f"{s['ratio']:.3f}", "{:.3f} to {:.3f}".format(*s["ratio_range"])),
                f"{s['exploring_share']:.1%}" if s["exploring_share"] else "",
            )
            for s in result["steps"]
        ],
    )
    return "\n".join(lines)


def equal_steps(cells: list[dict[str, Any]]) -> list[str]:
    """Accuracy, FLOPs and survival of every method at every sparsity."""
    rows = []
    for c in sorted(cells, key=lambda c: (c["level"], c["distribution"], -c["test"][0])):
        if not plain(c, distribution=c["distribution"]):
            continue
        rows.append(
            (
                f"{c['level']} {c['distribution']}" if c["level"] else "",
                *(NAMES[c["method"]], str(c["seeds"]), text(c["test"])),
                *(text(c["relative_flops"], 3), text(c["seconds"], 1)),
                *(text(c["next_survival"], 3), text(c["survival"], 3)),
                *(text(c["last_iou"], 3), text(c["inputless"], 3)),
            )
        )
    head = (
        *("sparsity", "method", "seeds", "test accuracy", "FLOPs / dense", "seconds"),
        *("survived the next drop", "survived to the end", "last IoU", "outputs without input"),
    )
    return table(head, rows)


def text(value: tuple[float, float] | None, digits: int = 2) -> str:
    return "" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join(' --- ' for _ in head)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def plot(cells: list[dict[str, Any]], folder: Path) -> None:
    """Accuracy over training FLOPs, a panel per case and sparsity."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prunekit"
    from matplotlib import pyplot

    shown = [c for c in cells if c["level"] and c["distribution"] == "erk"]
    panels = sorted({(c["case"], c["level"]) for c in shown})
    if not panels:
        return
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 3.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (case, level) in zip(axes[:, 0], panels, strict=True):
        here = [c for c in shown if (c["case"], c["level"]) == (case, level)]
        for number, method in enumerate(NAMES):
            mine = [c for c in here if c["method"] == method and not c["note"]]
            mine.sort(key=lambda c: c["relative_flops"][0])
            if mine:
                axis.errorbar(
                    [c["relative_flops"][0] for c in mine],
                    [c["test"][0] for c in mine],
                    yerr=[c["test"][1] for c in mine],
                    fmt="o-",
                    color=f"C{number}",
                    label=NAMES[method],
                    capsize=2,
                )
        for c in here:
            if c["note"]:
                axis.plot(c["relative_flops"][0], c["test"][0], "x", color="C4")
        axis.set_xscale("log")
        axis.set_title(f"{case}, {level} of the weights zero (crosses: other forms of IEE)")
        axis.set_xlabel("training FLOPs / one dense training run")
        axis.set_ylabel("test accuracy, %")
        axis.legend(fontsize=7)
    figure.savefig(folder / f"{NAME}.svg", metadata={"Date": None})
    pyplot.close(figure)
