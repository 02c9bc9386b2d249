"""Tables and plots of ``run.py`` from its runs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.common import compared, worded
from benchmarks.sparse_training.plan import CHEAPER, STAGES
from prunekit.report.markdown import markdown_table

NAME = "sparse_training"
NAMES = {
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "gmp": "GMP",
    "iee": "IEE",
    "dense": "dense",
}
ALL_STAGES = "IEE, all stages"
ORDER = ("static", "set", "rigl", "iee")
"""From the weakest on, as the literature has it."""


def summarise(
    rows: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    tried: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Write JSON, Markdown and a plot."""
    rows, rates = at_best_rate(rows)
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[tuple(row[key] for key in KEY)].append(row)
    devices = Counter(row["environment"]["device_name"] for row in rows)
    first = devices.most_common(1)[0][0] if devices else ""
    found = [
        {**dict(zip(KEY, key, strict=True)), **cell(runs, first)} for key, runs in cells.items()
    ]
    result = {
        "cells": found,
        "order": orders(rows),
        "equal_flops": equal_flops(rows),
        "rates": rates,
        "steps": steps,
        "trials": trials(tried),
        "environment": next(
            (row["environment"] for row in rows if row["environment"]["device_name"] == first), None
        ),
        "devices": dict(devices),
    }
    (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(markdown(result))
    plot(found, folder)


TRIED = ("case", "lr", "length", "method", "note")
SETTING = ("case", "level", "distribution", "length")
KEY = ("case", "method", "level", "distribution", "pattern", "length", "from_dense", "note")


def trials(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of what was tried, on the validation images."""
    cells: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        cells[tuple(row[key] for key in TRIED)][row["seed"]] = row  # rates and forms share some
    return [
        {
            **dict(zip(TRIED, key, strict=True)),
            "seeds": len(runs),
            "val": spread(100 * run["val"] for run in runs.values()),
            "relative_flops": mean(run["relative_flops"] for run in runs.values()),
        }
        for key, runs in cells.items()
    ]


def at_best_rate(
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of each form's best learning rate on the validation images, and what they were."""
    alike: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = defaultdict(dict)
    for row in rows:
        alike[tuple(row[key] for key in KEY)].setdefault(row["lr"], []).append(row)
    kept, told = [], []
    for key, by_rate in alike.items():
        vals = {rate: 100 * mean(row["val"] for row in some) for rate, some in by_rate.items()}
        best = max(vals, key=lambda rate: vals[rate])
        kept += by_rate[best]
        if len(vals) > 1:
            told.append({**dict(zip(KEY, key, strict=True)), "val": vals, "chosen": best})
    return kept, told


def cell(runs: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Means and deviations over seeds; seconds of one device alone."""
    return {
        "seeds": len(runs),
        "test": spread(100 * run["test"] for run in runs),
        "val": spread(100 * run["val"] for run in runs),
        "relative_flops": spread(run["relative_flops"] for run in runs),
        "seconds": spread(
            run["seconds"] for run in runs if run["environment"]["device_name"] == device
        ),
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


def whole(one: dict[str, Any]) -> bool:
    """Whether a row is a method's own form, or IEE with all stages, at whatever length."""
    own = {name: one[name] for name in ("distribution", "length")}
    return plain(one, **own) or plain(one, **own, note=STAGES)


def named(one: dict[str, Any]) -> str:
    """The method; IEE with all stages apart from its default."""
    return ALL_STAGES if one["note"] == STAGES else NAMES[one["method"]]


def orders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method against the one before it, and IEE against GMP, paired by seed, in points."""
    tests: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["level"] and whole(row):
            key = *(row[name] for name in SETTING), named(row)
            tests[key][row["seed"]] = 100 * row["test"]
    names = [NAMES[method] for method in ORDER]
    pairs = (*pairwise(names), ("RigL", ALL_STAGES), ("GMP", "IEE"))
    found = []
    for held in sorted({key[:-1] for key in tests}):
        for lower, upper in pairs:
            one, other = (tests[(*held, m)] for m in (upper, lower))
            points = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
            if points:
                found.append(
                    {
                        **dict(zip(SETTING, held, strict=True)),
                        "pair": f"{upper} - {lower}",
                        "difference": compared(points),
                    }
                )
    return found


def equal_flops(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every form of IEE against RigL trained as long as to cost the same, seed by seed.

    RigL's accuracy in between lengths is read off a straight line over the logarithm of FLOPs.
    Where a form costs more than the longest RigL, it is held against that, and so is ``beyond``;
    one that costs less than the shortest is held against the shortest, which costs more.
    """
    seeds: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    curves: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        here = row["case"], row["level"], row["distribution"]
        shape = {"distribution": row["distribution"], "length": row["length"]}
        if row["method"] == "rigl" and plain(row, **shape):
            curves[(*here, row["seed"])].append(row)
        form = row["level"] and row["note"] in ("", STAGES, *CHEAPER)
        if form and row["method"] == "iee" and plain(row, **shape, note=row["note"]):
            seeds[(*here, row["note"], row["length"])][row["seed"]] = row
    found = []
    for (*here, note, length), own in seeds.items():
        points, rivals, beyond = [], [], False
        for seed, row in sorted(own.items()):
            curve = sorted((r["relative_flops"], 100 * r["test"]) for r in curves[(*here, seed)])
            if len(curve) > 1:
                beyond |= row["relative_flops"] > curve[-1][0]
                costs, tests = zip(*curve, strict=True)
                rivals.append(float(np.interp(np.log(row["relative_flops"]), np.log(costs), tests)))
                points.append(100 * row["test"] - rivals[-1])
        if points:
            found.append(
                {
                    **dict(zip(("case", "level", "distribution"), here, strict=True)),
                    "form": note or "default",
                    "length": length,
                    "relative_flops": mean(r["relative_flops"] for r in own.values()),
                    "val": mean(100 * r["val"] for r in own.values()),
                    "iee": spread(100 * r["test"] for r in own.values()),
                    "rigl": spread(rivals),
                    "beyond": beyond,
                    "difference": compared(points),
                }
            )
    for one in found:
        alike = [f for f in found if all(f[k] == one[k] for k in ("case", "level", "distribution"))]
        one["chosen"] = one["val"] == max(f["val"] for f in alike if f["length"] == 1)
    return sorted(found, key=lambda f: (f["case"], f["level"], f["distribution"], -f["val"]))


# --- Markdown -----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """All tables."""
    cells, lines = result["cells"], ["# Sparse training of weights", ""]
    if result["environment"]:
        where = result["environment"]
        elsewhere = "".join(
            f"{count} trainings ran on {name}, and are not in the seconds. "
            for name, count in result["devices"].items()
            if name != where["device_name"]
        )
        lines += [
            f"One thread of {where['device_name']}, torch {where['torch']}. {elsewhere}Mean and "
            "standard deviation over seeds, on test images; the last IoU follows from the "
            "schedule, which exchanges fewer and fewer weights.",
            "",
        ]
    for case in sorted({c["case"] for c in cells}):
        lines += [f"## {case}", "", "### Equal steps", ""]
        lines += equal_steps([c for c in cells if c["case"] == case])
    lines += [
        "## At equal steps: each method less the one before",
        "",
        "Points of test accuracy, paired by seed, with 90 % intervals (Student's t). *level*: the "
        "interval holds zero. GMP begins dense and costs nearly what IEE costs.",
        "",
    ]
    lines += table(
        ("case", "sparsity", "methods", "difference"),
        [(o["case"], setting(o), o["pair"], worded(o["difference"])) for o in result["order"]],
    )
    lines += [
        "## At equal training FLOPs: IEE against RigL trained longer",
        "",
        "RigL's accuracy at IEE's cost is read off between its lengths, seed by seed. *chosen*: of "
        "the forms of one length the best on the validation images. `>`: it costs more than the "
        "longest RigL there is, and is held against that.",
        "",
    ]
    lines += table(
        (
            *("case", "sparsity", "form of IEE", "epochs", "FLOPs / dense", "IEE", "RigL"),
            "IEE - RigL",
        ),
        [
            (
                *(f["case"], f"{f['level']} {f['distribution']}"),
                f["form"] + (" (chosen)" if f["chosen"] else ""),
                f"{f['length']}x",
                f"{'> ' if f['beyond'] else ''}{f['relative_flops']:.3f}",
                *(text(f["iee"]), text(f["rigl"]), worded(f["difference"])),
            )
            for f in result["equal_flops"]
        ],
    )
    if result["rates"]:
        lines += ["Longer RigL takes the learning rate that is best on the validation images:", ""]
        lines += table(
            ("case", "sparsity", "epochs", "validation accuracy at each rate"),
            [
                (
                    *(r["case"], f"{r['level']} {r['distribution']}", f"{r['length']}x"),
                    ", ".join(f"{rate}: {val:.1f}" for rate, val in sorted(r["val"].items())),
                )
                for r in result["rates"]
            ],
        )
    lines += [
        "## Parts of IEE (ablation), and cheaper forms",
        "",
        "The default leaves stage 3 out and ends the exchanges at IoU 0.9; every other form says "
        "what it changes of the paper's stages.",
        "",
    ]
    lines += table(
        ("case", "sparsity", "form", "seeds", "test accuracy", "FLOPs / dense", "survival"),
        [
            (
                *(c["case"], c["level"], c["note"] or "default", str(c["seeds"])),
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
                *(c["case"], f"{named(c)} 2:4"),
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
    if result["trials"]:
        lines += [
            "## Trials that settings were chosen by",
            "",
            "At 95 %; accuracy on the validation images.",
            "",
        ]
        lines += table(
            (
                *("case", "epochs", "learning rate", "method", "form", "seeds"),
                *("validation accuracy", "FLOPs / dense"),
            ),
            [
                (
                    *(t["case"], f"{t['length']}x", str(t["lr"]), NAMES[t["method"]], t["note"]),
                    str(t["seeds"]),
                    text(t["val"]) if t["seeds"] > 1 else f"{t['val'][0]:.2f}",
                    f"{t['relative_flops']:.3f}",
                )
                for t in sorted(result["trials"], key=_order)
            ],
        )
    return "\n".join(lines)


def _order(tried: dict[str, Any]) -> tuple[Any, ...]:
    own = tried["note"] != "", tried["method"], tried["lr"]
    return tried["case"], tried["length"], *own, -tried["val"][0]


def equal_steps(cells: list[dict[str, Any]]) -> list[str]:
    """Accuracy, FLOPs and survival of every method at every sparsity."""
    rows = []
    alike = [c for c in cells if whole(c)]
    methods = defaultdict(set)
    for c in alike:
        methods[setting(c)].add(c["method"])
    order = "length", "level", "distribution"
    for c in sorted(alike, key=lambda c: (*(c[name] for name in order), -c["test"][0])):
        if c["level"] and len(methods[setting(c)]) == 1:  # one method alone, trained longer
            continue
        rows.append(
            (
                setting(c) if c["level"] else "",
                *(named(c), str(c["seeds"]), text(c["test"])),
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


def setting(one: dict[str, Any]) -> str:
    """Sparsity, distribution and, where it is not one, how many times the epochs."""
    longer = f", {one['length']}x the epochs" if one["length"] > 1 else ""
    return f"{one['level']} {one['distribution']}{longer}"


def text(value: tuple[float, float] | None, digits: int = 2) -> str:
    return "" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table, and the empty line after it."""
    return [*markdown_table(head, rows), ""]


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
