"""Sparse training: static, SET, RigL, GMP and IEE at equal steps and at equal training FLOPs.

    python -m benchmarks.sparse_training.run            the comparisons, resumed where they stopped
    ... --beyond        what explains them, after them
    ... --subset        under a minute, for CI
    ... --only mlp steps --jobs 1
    ... --summary       only the tables and plots of what is there
    ... --plan          how many trainings, and what they took
    ... --trials rates  learning rates, on the validation images
    ... --trials forms  forms of IEE, likewise
    ... --trials lengths  the best of them, four times as long

Every training is one line of results/sparse_training_runs.jsonl, and is not repeated while its
settings stay the same. All methods of a case train for the same epochs with the same data order
from the same weights; `long` runs train for a multiple of them, for the comparison at equal FLOPs.
Accuracies are on the test images, which are drawn in fonts of their own; which cheaper form of IEE
is held against RigL was chosen on the validation images. Step times are measured interleaved in one
process, alone (`--only steps`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import code
from benchmarks.sparse_training.plan import (
    CASES,
    KINDS,
    NAME,
    SUBSET,
    TRIALS,
    Run,
    beyond,
    form,
    matrix,
    trials,
)
from benchmarks.sparse_training.step_times import step_times
from benchmarks.sparse_training.training import HERE, carry_out, datasets

os.environ.setdefault("OMP_NUM_THREADS", "1")


def environment() -> dict[str, Any]:
    """The machine, and what is installed."""
    from prunekit.core.target import Target, package_version
    from prunekit.runtimes import runtime_for

    target = Target.parse("onnxruntime:cpu", threads=1)
    return {**asdict(runtime_for(target).environment(target)), "torch": package_version("torch")}


# --- step times ---------------------------------------------------------------------------------


# --- the whole ----------------------------------------------------------------------------------


def read(path: Path) -> dict[str, dict[str, Any]]:
    """All results so far, by key."""
    if not path.is_file():
        return {}
    return {row["key"]: row for row in map(json.loads, path.read_text().splitlines())}


def append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def end_with_parent() -> None:
    """End this process when the one that started it is gone, by whatever signal."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def carry_out_all(runs: list[Run], path: Path, jobs: int, told: str = "test") -> None:
    """Every run that has no result yet; ``told`` is the accuracy shown as they end."""
    done = read(path)
    left = [run for run in {run.key: run for run in runs}.values() if run.key not in done]
    if left:
        datasets(left[0].settings)  # rendered once, before the processes start
    here = environment()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent) as pool:
        waiting = {pool.submit(carry_out, run): run for run in left}
        failed = 0
        for number, future in enumerate(as_completed(waiting), 1):
            run = waiting[future]
            try:
                result = future.result()
            except Exception as error:
                failed += 1
                print(f"{run.key} failed: {error}", file=sys.stderr, flush=True)
                continue
            row = {"key": run.key, **asdict(run), **result, "environment": here, "code": code()}
            append(path, row)
            print(f"[{number}/{len(left)}] {run.key}: {told} {result[told]:.4f}", flush=True)
    if failed:
        raise SystemExit(f"{failed} of {len(left)} runs failed; the others are kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name in CASES if name != "subset"]
    parser.add_argument("--only", nargs="*", default=[*names, "steps"], choices=[*names, "steps"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--beyond", action="store_true", help="what explains the comparisons too")
    parser.add_argument("--subset", action="store_true", help="a few short runs, kept nowhere")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    parser.add_argument("--plan", action="store_true", help="count the trainings, do none")
    parser.add_argument("--trials", choices=KINDS, help="with one seed, to choose by")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    cases = [name for name in arguments.only if name in names]
    if arguments.subset:
        subset()
        return

    def wanted(case: str) -> list[Run]:
        return [*matrix(case), *(beyond(case) if arguments.beyond else ())]

    path = arguments.results / f"{NAME}_runs.jsonl"
    if arguments.plan:
        done = read(path)
        for name in cases:
            runs = {run.key: run for run in wanted(name)}
            epochs = sum(run.epochs for run in runs.values()) * CASES[name].epochs
            spent = [done[key]["seconds"] for key in runs if key in done]
            print(
                f"{name}: {len(runs)} trainings, {epochs} epochs; {len(spent)} are there, "
                f"which took {sum(spent) / 3600:.2f} hours of one core"
            )
        return
    if arguments.trials:
        runs = trials(arguments.trials, cases)
        carry_out_all(runs, arguments.results / TRIALS, arguments.jobs, "val")
        summarise(arguments.results)
        return
    if not arguments.summary:
        if "steps" in arguments.only:  # first, while nothing else runs
            done = {row["case"] for row in steps_of(arguments.results)}
            for name in [case for case in names if case not in done]:
                here = environment()
                for row in step_times(name):
                    append(arguments.results / f"{NAME}_steps.jsonl", {**row, "environment": here})
        # case by case, so that what is there is complete for some
        for name in cases:
            carry_out_all(wanted(name), path, arguments.jobs)
    summarise(arguments.results)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / f"{NAME}_steps.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summarise(folder: Path) -> None:
    from benchmarks.sparse_training.summary import summarise as sum_up

    def of(name: str, runs: list[Run]) -> list[dict[str, Any]]:
        held = read(folder / name)
        return [
            {**held[run.key], "note": form(run), "lr": run.settings.lr, "case": run.network}
            for run in {run.key: run for run in runs}.values()
            if run.key in held
        ]

    cases = [name for name in CASES if name != "subset"]
    tried = of(TRIALS, [run for kind in KINDS for run in trials(kind, cases)])
    runs = [run for name in cases for run in (*matrix(name), *beyond(name))]
    rows = of(f"{NAME}_runs.jsonl", [*runs, *SUBSET])
    sum_up(rows, steps_of(folder), tried, folder)


def subset() -> None:
    """Carry :data:`SUBSET` out; says that the runs hold together."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        carry_out_all(list(SUBSET), folder / f"{NAME}_runs.jsonl", 2)
        for row in step_times("subset"):
            append(folder / f"{NAME}_steps.jsonl", {**row, "environment": environment()})
        summarise(folder)
        print((folder / f"{NAME}.md").read_text())
        rows = [*read(folder / f"{NAME}_runs.jsonl").values()]
    cost = {(r["method"], r["level"], r["length"], r["note"]): r["relative_flops"] for r in rows}
    assert cost["static", "95%", 1, ""] < cost["rigl", "95%", 1, ""] < cost["iee", "95%", 1, ""]
    for row in rows:
        if row["method"] != "dense":
            wanted = 0.5 if row["pattern"] == "2:4" else 0.95
            assert abs(row["sparsity"] - wanted) < 1e-3, row["key"]
        if not row["level"]:
            assert row["test"] > 0.8, row["key"]


if __name__ == "__main__":
    main()
