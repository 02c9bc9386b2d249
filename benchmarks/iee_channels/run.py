"""IEE for channels against its alternatives, at the same measured latency.

    python -m benchmarks.iee_channels.run                 everything, resumed where it stopped
    python -m benchmarks.iee_channels.run --subset        a minute or two, for CI
    python -m benchmarks.iee_channels.run --only vgg11_bn ablation --jobs 1
    python -m benchmarks.iee_channels.run --summary       only the tables and plots of what is there

Every run is one line of results/iee_channels_runs.jsonl, and is not repeated while its settings
stay the same. Settings were chosen on the validation images; accuracies in the tables are on the
test images, which are drawn in fonts of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.iee_channels.plan import (
    CASES,
    MEASURE_SECONDS,
    Run,
    ablation,
    equal_cost,
    importance,
    matrix,
    needs,
    why,
)
from benchmarks.iee_channels.results import (
    CACHE,
    HERE,
    HOME,
    RUNS,
    dense_weights,
    done,
    record,
    results,
    table_of,
)

# --- carrying a run out -------------------------------------------------------------------------


def command(*arguments: object) -> None:
    """One process of its own, with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    text = [str(argument) for argument in arguments]
    found = subprocess.run(
        [sys.executable, *text], cwd=HERE.parent, env=env, capture_output=True, text=True
    )
    missed = "prunekit" in text and "is below what is reachable" not in found.stderr
    if found.returncode not in ((0, 1) if missed else (0,)):
        raise RuntimeError(f"{' '.join(text)}: exit {found.returncode}\n{found.stderr[-2000:]}")


def carry_out(run: Run) -> None:
    """Do ``run`` unless its result is there."""
    kept = {"dense": dense_weights(run), "table": table_of(run.case)}.get(run.method)
    if run.key in done() and (kept is None or kept.is_file()):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    started = time.time()
    if run.method in ("oneshot", "halp", "iee", "iee-pretrained"):
        result = by_command_line(run)
    else:
        held = CACHE / f"{run.key}.json"
        command("-m", "benchmarks.iee_channels.run", "--one", json.dumps(asdict(run)), held)
        result = {**json.loads(held.read_text()), "environment": here()}
    seconds = time.time() - started
    record(run, {**result, "wall_seconds": seconds})
    print(f"{run.key}: {result.get('test', float('nan')):.4f} ({seconds:.0f} s)", flush=True)


def here() -> dict[str, Any]:
    """The machine that this run was carried out on."""
    from prunekit.core.target import Target
    from prunekit.runtimes import runtime_for

    target = Target.parse("onnxruntime:cpu", threads=1)
    return asdict(runtime_for(target).environment(target))


def failure(run: Run) -> bool:
    """Carry out ``run``; whether it failed, which is said at once and stops no other."""
    try:
        carry_out(run)
    except Exception as error:
        print(f"{run.key}: {error}", flush=True)
        return True
    return False


def by_command_line(run: Run) -> dict[str, Any]:
    """The method as a user runs it: ``prunekit prune``."""
    case, out = CASES[run.case], CACHE / run.key
    scratch = run.method == "iee"
    options = dict(run.options)
    times = options.pop("times", 1)
    flags: list[object] = [
        *("prune", case.model, "--data", case.data, "--input", case.input, "-o", out),
        *("--table", table_of(run.case), "--target-latency", run.target),
        *("--method", run.method.split("-")[0], "--criterion", run.criterion),
        *("--epochs", times * case.epochs, "--batch-size", case.batch_size, "--lr", case.lr),
        *("--seed", run.seed, "--measure-seconds", MEASURE_SECONDS, "--quiet"),
        *("--mixed-precision", case.precision, "--target", case.target),
    ]
    if scratch:
        flags += ["--from-scratch"]
    else:
        flags += ["--weights", dense_weights(run), "--fine-tune-lr", case.fine_tune_lr]
    for name, value in options.items():
        flags += ["--iee", f"{name}={value}"] if "iee" in run.method else [f"--{name}", value]
    flags += ["--resume"] if (out / "config.toml").is_file() else ["--overwrite"]
    command("-m", "prunekit", *flags)
    report = json.loads((out / "report.json").read_text())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    result = {
        "val": report["accuracy"]["pruned"],
        "test": test_accuracy(run.case, out / "model.onnx"),
        "ratio": report["latency"]["ratio"],
        "ratio_ci": report["latency"]["ratio_ci"],
        "met": report["latency"]["met"],
        "relative_flops": times * report["training_cost"]["relative_flops"] + (not scratch),
        "seconds": report["training_cost"]["seconds"],
        "macs_ratio": report["macs"]["pruned"] / report["macs"]["dense"],
        "widths": {g: w[1] for g, w in report["widths"].items()},
        "updates": [row for row in rows if row["stage"] == "update"],
        "environment": report["environment"],
    }
    shutil.rmtree(out)
    return result


def one(run: Run) -> dict[str, Any]:
    """The methods that are no part of the command line, in this process."""
    from benchmarks.iee_channels import controls

    return controls.carry_out(run, CASES[run.case], table_of, dense_weights)


def test_accuracy(case: str, model: Path) -> float:
    """Top-1 of an ONNX file on the test images."""
    from benchmarks.iee_channels import training

    return training.test_accuracy(CASES[case], model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[*(name for name in CASES if name != "subset"), "ablation"]
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--subset", action="store_true", help="a few short runs, kept nowhere")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    parser.add_argument("--one", nargs=2)
    arguments = parser.parse_args()
    if arguments.one:
        run = Run(**json.loads(arguments.one[0]))
        Path(arguments.one[1]).write_text(json.dumps(one(run)))
        return
    if arguments.subset:
        subset()
        return
    runs = [*matrix([name for name in CASES if name in arguments.only])]
    if "ablation" in arguments.only:
        runs += ablation()
    images = [name for name in CASES if name in arguments.only and name != "digits"]
    runs += [*why(images), *equal_cost(images)]
    runs.sort(key=importance)
    if not arguments.summary:
        carry_out_all(runs, arguments.jobs)
    from benchmarks.iee_channels.summary import summarise

    summarise(results(), RUNS.parent)


def subset() -> None:
    """Every kind of run once, on digits and for few epochs; says that they all hold together."""
    if HOME is None:
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "IEE_CHANNELS_HOME": folder}
            subprocess.run(
                [sys.executable, "-m", "benchmarks.iee_channels.run", "--subset"],
                env=env,
                check=True,
            )
        return
    runs = [
        Run("subset", method, 0, "50%", "taylor")
        for method in ("iee", "halp", "iee-pretrained", "torch-pruning")
    ]
    runs.append(Run("subset", "uniform", 0, "50%"))
    carry_out_all(runs, 2)
    from benchmarks.iee_channels.summary import summarise

    rows = results()
    summarise(rows, RUNS.parent)
    print((RUNS.parent / "iee_channels.md").read_text())
    for row in rows:
        if row["method"] not in ("dense", "table"):
            assert row["test"] > 0.5, row["key"]
            assert row["ratio"] < 0.6, row["key"]
    cost = {row["method"]: row["relative_flops"] for row in rows if row["method"] != "table"}
    assert cost["iee"] < cost["dense"] < cost["halp"], cost


def carry_out_all(runs: list[Run], jobs: int) -> None:
    """Everything ``runs`` need, then ``runs``; measured tables alone on the machine."""
    first = needs(runs)
    alone = [run for run in first if run.method == "table" and CASES[run.case].target != "fake"]
    for run in alone:
        carry_out(run)
    for batch in ([run for run in first if run not in alone], runs):
        with ThreadPoolExecutor(jobs) as pool:
            failed = [*pool.map(failure, batch)]
        if any(failed):
            raise SystemExit(f"{sum(failed)} of {len(batch)} runs failed; the others are kept")


if __name__ == "__main__":
    main()
