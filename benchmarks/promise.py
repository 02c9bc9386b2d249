"""Whether the promise holds: targets met as later sessions see them, intervals that hold.

    python benchmarks/promise.py

Runs where it is started and says which machine that is. What is measured is kept in
`results/promise_runs.jsonl` and not measured again, as long as the code is the same; `--again`
forgets it. `--only` takes parts: digits, large, intervals, checks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import RESULTS, beside, code, prunekit, save

from prunekit.core.target import cpu_environment

LOG = RESULTS / "promise_runs.jsonl"
KEEP = Path(tempfile.gettempdir()) / "prunekit-promise"
ONESHOT = ("--criterion", "magnitude", "--method", "oneshot", "--epochs", "0")
DIGITS = (
    *("zoo:resnet20_w32", "--data", "digits", "--input", "1x3x16x16", "--from-scratch"),
    *("--target-latency", "50%"),
)
LARGE = {
    "resnet50": ("torchvision:resnet50", "--input", "1x3x224x224", "--target-latency", "50%"),
    "mobilenet_v2": (
        *("torchvision:mobilenet_v2", "--input", "1x3x224x224", "--target-latency", "60%"),
    ),
    "efficientnet_b0": (
        *("torchvision:efficientnet_b0", "--input", "1x3x224x224", "--target-latency", "50%"),
    ),
}
PAIRS = {
    "resnet20_w32 50%": ("zoo:resnet20_w32", "1x3x16x16", "50%"),
    "resnet20_w32 40%": ("zoo:resnet20_w32", "1x3x16x16", "40%"),
    "resnet20 60%": ("zoo:resnet20", "1x3x32x32", "60%"),
    "vgg11_bn 50%": ("zoo:vgg11_bn", "1x3x32x32", "50%"),
    "mobilenet_v1 60%": ("zoo:mobilenet_v1", "1x3x32x32", "60%"),
    "resnet18 50%": ("torchvision:resnet18", "1x3x64x64", "50%"),
    "mobilenet_v2 60%": ("torchvision:mobilenet_v2", "1x3x96x96", "60%"),
    "shufflenet_v2 70%": ("torchvision:shufflenet_v2_x1_0", "1x3x128x128", "70%"),
    "resnet50 50%": ("torchvision:resnet50", "1x3x128x128", "50%"),
    "mobilenet_v2 224 60%": ("torchvision:mobilenet_v2", "1x3x224x224", "60%"),
}
ROUNDS = 10
LATER = 5
"""New sessions by plain ONNX Runtime, after all runs."""
BUSY = (
    "while True: pass",
    "import numpy as n\na = n.ones((600, 600), 'f')\nwhile True: a @ a",
)
PLAIN = """
import sys, time, json
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
runs = []
for path in sys.argv[1:]:
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    runs.append((session, {given.name: np.ones(shape, np.float32)}, []))
stop = time.perf_counter() + 1.5
while time.perf_counter() < stop:
    for session, feed, kept in runs:
        session.run(None, feed)
        for _ in range(5):
            began = time.perf_counter()
            session.run(None, feed)
            kept.append(time.perf_counter() - began)
print(json.dumps(float(np.median(runs[1][2]) / np.median(runs[0][2]))))
"""


class Kept:
    """Runs by their key, one a line, of this code alone."""

    def __init__(self, *, again: bool) -> None:
        self.code = code()
        if again:
            LOG.unlink(missing_ok=True)
        lines = LOG.read_text().splitlines() if LOG.is_file() else []
        rows = [json.loads(line) for line in lines]
        self.rows = {row["key"]: row for row in rows if row["code"] == self.code}

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of ``key``, measured now where it is not there."""
        if key not in self.rows:
            row = {"key": key, "code": self.code, "at": round(time.time()), **measure()}
            self.rows[key] = row
            with LOG.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(key, {k: v for k, v in row.items() if k not in ("key", "code", "seconds_by")})
        return self.rows[key]


def pruned(arguments: tuple[str, ...], folder: Path, busy: int) -> dict[str, Any]:
    """One run of `prune`, and what its report says."""
    with beside(busy, *BUSY):
        status, report, seconds = prunekit("prune", *arguments, "-o", str(folder), "--overwrite")
    if "latency" not in report:
        return {"exit": status, "seconds": round(seconds, 1), "error": report.get("error", "")}
    latency = report["latency"]
    return {
        "exit": status,
        "seconds": round(seconds, 1),
        "seconds_by": report["seconds"],
        "ratio": latency["ratio"],
        "ratio_ci": latency["ratio_ci"],
        "limit": latency["limit_ratio"],
        "probability": latency["probability"],
        "mended": latency["mended"],
        "accuracy": report["accuracy"],
        "attempts": len(report["landing"]),
        "folder": str(folder),
    }


def plain(folder: Path) -> float:
    """The ratio of a run's two files in a new session, by ONNX Runtime alone."""
    files = [str(folder / name) for name in ("dense.onnx", "model.onnx")]
    command = [sys.executable, "-c", PLAIN, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def digits(kept: Kept, count: int) -> dict[str, Any]:
    """Twenty runs, idle and beside a busy process in turns; then all files timed anew."""
    rows = []
    for number in range(count):
        for busy in (0, 1):
            seed = 2 * number + busy
            folder = KEEP / f"digits-{seed}"
            arguments = (*DIGITS, "--seed", str(seed))
            measure = lambda a=arguments, f=folder, b=busy: pruned(a, f, b)  # noqa: E731
            rows.append({"busy": busy, **kept.once(f"digits {seed} beside {busy}", measure)})
    for later in range(LATER):
        for seed, row in enumerate(rows):
            if row["exit"] == 0:
                folder = Path(row["folder"])
                measure = lambda f=folder: {"plain": plain(f)}  # noqa: E731
                found = kept.once(f"digits {seed} later {later}", measure)
                row.setdefault("later", []).append(found["plain"])
    for row in rows:
        if "later" in row:
            half = (row["ratio_ci"][1] - row["ratio_ci"][0]) / 2
            row["later_median"] = median(row["later"])
            row["holds"] = row["later_median"] <= row["limit"] + half
    return _summary(rows)


def large(kept: Kept, count: int) -> dict[str, Any]:
    """Three large networks without data."""
    found = {}
    for name, arguments in LARGE.items():
        rows = []
        for seed in range(count):
            folder = KEEP / f"{name}-{seed}"
            full = (*arguments, *ONESHOT, "--seed", str(seed))
            measure = lambda a=full, f=folder: pruned(a, f, 0)  # noqa: E731
            rows.append(kept.once(f"{name} {seed}", measure))
        found[name] = _summary(rows)
    return found


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    used = [row["ratio"] / row["limit"] for row in rows if "ratio" in row]
    held = [row["holds"] for row in rows if "holds" in row]
    return {
        "runs": len(rows),
        "met": sum(row["exit"] == 0 for row in rows),
        "used_mean": mean(used) if used else None,
        "used_least": min(used, default=None),
        "held_later": sum(held),
        "timed_later": len(held),
        "mended": sum(row.get("mended", 0) for row in rows),
        "seconds_median": median(row["seconds"] for row in rows),
        "rows": rows,
    }


def intervals(kept: Kept, count: int) -> dict[str, Any]:
    """Ten pairs of files, benched again and again: idle, and beside a busy process."""
    folders = {name: _pair(name) for name in PAIRS}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in PAIRS}
    for number in range(count):
        for busy in (0, 1):
            with beside(busy, *BUSY):
                for name, folder in folders.items():
                    key = f"bench {name} beside {busy} number {number}"
                    row = kept.once(key, lambda f=folder, n=number: _benched(f, n))
                    found[name].setdefault(busy, []).append(row)
    rows = {}
    for name, by_load in found.items():
        pooled = median(row["ratio"] for row in by_load[0])
        rows[name] = {
            "pooled": pooled,
            **{
                str(busy): {
                    "holds": sum(r["ci"][0] <= pooled <= r["ci"][1] for r in runs),
                    "of": len(runs),
                    "ratios": [r["ratio"] for r in runs],
                    "half_width": median((r["ci"][1] - r["ci"][0]) / 2 / r["ratio"] for r in runs),
                    "seconds": median(r["seconds"] for r in runs),
                }
                for busy, runs in by_load.items()
            },
        }
    return {"pairs": rows, "hours": _hours(kept)}


def _hours(kept: Kept) -> float:
    times = [row["at"] for key, row in kept.rows.items() if key.startswith("bench ")]
    return round((max(times) - min(times)) / 3600, 2) if times else 0.0


def _pair(name: str) -> Path:
    """A dense and a narrow file, their widths chosen on the fake target."""
    model, shape, target = PAIRS[name]
    folder = KEEP / name.replace(" ", "-").replace("%", "")
    if not (folder / "report.json").is_file():
        arguments = (model, "--input", shape, "--target-latency", target, "--target", "fake")
        prunekit("prune", *arguments, *ONESHOT, "-o", str(folder), "--overwrite")
    return folder


def _benched(folder: Path, seed: int) -> dict[str, Any]:
    files = [str(folder / name) for name in ("dense.onnx", "model.onnx")]
    _, told, seconds = prunekit("bench", *files, "--seed", str(seed))
    last = told["artifacts"][1]
    return {"ratio": last["ratio"], "ci": last["ratio_ci"], "seconds": round(seconds, 1)}


def checks(kept: Kept, count: int) -> dict[str, Any]:
    """`check` of the same file, and of one that is slower: verdicts, idle and loaded."""
    folder = _pair("resnet18 50%")
    files = {"unchanged": ("model.onnx", "model.onnx"), "slower": ("model.onnx", "dense.onnx")}
    found: dict[str, dict[str, int]] = {}
    for busy in (0, 1, 3):
        with beside(busy, *BUSY):
            for name, (before, now) in files.items():
                verdicts = []
                for number in range(count):
                    call = (str(folder / now), "--baseline", str(folder / before))
                    measure = lambda c=call: _checked(c)  # noqa: E731
                    row = kept.once(f"check {name} beside {busy} number {number}", measure)
                    verdicts.append(row["outcome"])
                found[f"{name} beside {busy}"] = {v: verdicts.count(v) for v in set(verdicts)}
    return found


def _checked(arguments: tuple[str, ...]) -> dict[str, Any]:
    _, told, seconds = prunekit("check", *arguments, "--max-seconds", "30")
    return {"outcome": told["outcome"], "ratio": told["ratio"], "seconds": round(seconds, 1)}


def plot(found: dict[str, Any]) -> None:
    """Budget used by every run, and where later sessions see it."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "prunekit"
    rows = found["digits"]["rows"]
    figure, axis = plt.subplots(figsize=(8, 3.5))
    for busy, colour in ((0, "tab:blue"), (1, "tab:orange")):
        chosen = [(n, r) for n, r in enumerate(rows) if r["busy"] == busy and "ratio" in r]
        x = [n for n, _ in chosen]
        middle = [r["ratio"] for _, r in chosen]
        below = [r["ratio"] - r["ratio_ci"][0] for _, r in chosen]
        above = [r["ratio_ci"][1] - r["ratio"] for _, r in chosen]
        label = f"stated, beside {busy} busy processes"
        axis.errorbar(x, middle, [below, above], fmt="o", color=colour, label=label)
        later = [(n, v) for n, r in chosen for v in r.get("later", [])]
        axis.plot(*zip(*later, strict=True), ".", color="grey", markersize=4)
    axis.axhline(0.5, color="tab:red", linewidth=1)
    axis.set_xlabel("run (grey: new sessions by ONNX Runtime alone)")
    axis.set_ylabel("latency / dense")
    axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "promise.svg", metadata={"Date": None})


PARTS = {"digits": (digits, 10), "large": (large, 3), "intervals": (intervals, ROUNDS)}
PARTS["checks"] = (checks, 10)


def main() -> None:
    """All parts, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--again", action="store_true", help="forget what is measured")
    parser.add_argument("--count", type=int, help="runs of each kind; default: 10, of large 3")
    given = parser.parse_args()
    kept = Kept(again=given.again)
    path = RESULTS / "promise.json"
    found = json.loads(path.read_text()) if path.is_file() and not given.again else {}
    found["environment"] = asdict(cpu_environment(version("onnxruntime")))
    found["code"] = kept.code
    for name in given.only:
        part, count = PARTS[name]
        found[name] = part(kept, given.count or count)
    save("promise", found)
    if "digits" in found:
        plot(found)
    shutil.rmtree(KEEP, ignore_errors=True) if len(given.only) == len(PARTS) else None


if __name__ == "__main__":
    main()
