"""IEE for channels against its alternatives, at the same measured latency.

    python benchmarks/iee_channels.py                 everything, resumed where it stopped
    python benchmarks/iee_channels.py --subset        a minute or two, for CI
    python benchmarks/iee_channels.py --only vgg11_bn ablation --jobs 1
    python benchmarks/iee_channels.py --summary       only the tables and plots of what is there

Every run is one line of results/iee_channels_runs.jsonl, and is not repeated while its settings
stay the same. Settings were chosen on the validation images; accuracies in the tables are on the
test images, which are drawn in fonts of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from common import code

HERE = Path(__file__).parent
HOME = os.environ.get("IEE_CHANNELS_HOME")  # the subset's folder
RUNS = Path(HOME or HERE / "results") / "iee_channels_runs.jsonl"
CACHE = Path(HOME or HERE / ".cache") / "iee_channels"
SEEDS = (0, 1, 2)
EXCHANGE_SEEDS = (0, 1)
TARGETS = ("30%", "50%")
TIMES = 4
"""With so many times the epochs IEE from scratch costs about what HALP costs from scratch."""
EQUAL_COST = f"{TIMES} times the epochs"
SAME_DENSE = "zero growth, the default"
"""The default method again, on the same machine and dense networks as what it is compared with."""
MEASURE_SECONDS = 1.5
"""Of each network that is timed on the way to a latency."""
LOCK = Lock()


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained; ``epochs`` is one dense training run."""

    model: str
    data: str = "benchmarks/glyphs.py:glyphs"
    input: str = "1x3x16x16"
    epochs: int = 8
    batch_size: int = 128
    lr: float = 0.3
    fine_tune_lr: float = 0.2
    precision: str = "no"
    target: str = "onnxruntime:cpu"


DIGITS = Case(
    "zoo:resnet20_w32", "digits", "1x1x16x16", epochs=15, batch_size=64, lr=0.1, fine_tune_lr=0.05
)
CASES = {
    "resnet20_w32": Case(
        "zoo:resnet20_w32", batch_size=64, lr=0.2, fine_tune_lr=0.1, precision="bf16"
    ),
    "mobilenet_v1": Case(
        "benchmarks/nets.py:mobilenet_v1_half",
        *("benchmarks/glyphs.py:glyphs64", "8x3x16x16"),
        batch_size=64,
        lr=0.2,
        fine_tune_lr=0.1,
    ),
    "vgg11_bn": Case(
        "benchmarks/nets.py:vgg11_bn_half",
        *("benchmarks/glyphs.py:glyphs64", "8x3x16x16"),
        batch_size=64,
        lr=0.1,
        fine_tune_lr=0.05,
    ),
    "digits": DIGITS,
    # On the fake target every latency is the same on all machines, and costs no time.
    "subset": replace(DIGITS, model="benchmarks/nets.py:vgg11_bn_half", epochs=3, target="fake"),
}


@dataclass(frozen=True)
class Run:
    """One training: everything that decides its result."""

    case: str
    method: str
    seed: int
    target: str = ""
    criterion: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """A name for this run and the settings of its case."""
        settings = asdict(CASES[self.case])
        if settings["target"] == Case.target:  # keys of the time before there was a choice
            del settings["target"]
        facts = {**asdict(self), "settings": settings}
        facts.pop("note")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        parts = [self.case, self.method, self.criterion, self.target.rstrip("%"), str(self.seed)]
        return "-".join([*filter(None, parts), digest])


def results() -> list[dict[str, Any]]:
    """All results so far, in the order they came."""
    return [*map(json.loads, RUNS.read_text().splitlines())] if RUNS.is_file() else []


def done() -> dict[str, dict[str, Any]]:
    """All results so far, by key."""
    return {row["key"]: row for row in results()}


def record(run: Run, result: dict[str, Any]) -> None:
    """Append one result, with the state of the code that gave it."""
    row = {"key": run.key, **asdict(run), **result, "code": code()}
    with LOCK, RUNS.open("a") as file:
        file.write(json.dumps(row) + "\n")


# --- carrying a run out -------------------------------------------------------------------------


def command(*arguments: object) -> None:
    """One process of its own, with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    text = [str(argument) for argument in arguments]
    found = subprocess.run(
        [sys.executable, *text], cwd=HERE.parent, env=env, capture_output=True, text=True
    )
    missed = "prunekit" in text and "is below what is reachable" not in found.stderr
    if found.returncode not in ((0, 1) if missed else (0,)):
        raise RuntimeError(f"{' '.join(text)}: exit {found.returncode}\n{found.stderr[-2000:]}")


def dense_weights(run: Run) -> Path:
    """Where the dense network of this run's case and seed is kept."""
    return CACHE / f"{Run(run.case, 'dense', run.seed).key}.safetensors"


def table_of(case: str) -> Path:
    """Where the latency table of a case is kept."""
    return CACHE / f"{case}-table.json"


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
        command(HERE / "iee_channels.py", "--one", json.dumps(asdict(run)), held)
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
    import iee_channels_others

    return iee_channels_others.carry_out(run, CASES[run.case], table_of, dense_weights)


def test_accuracy(case: str, model: Path) -> float:
    """Top-1 of an ONNX file on the test images."""
    import iee_channels_others

    return iee_channels_others.test_accuracy(CASES[case], model)


# --- which runs ---------------------------------------------------------------------------------


METHODS = ("iee", "halp", "oneshot", "iee-pretrained", "torch-pruning")


def matrix(cases: list[str]) -> Iterator[Run]:
    """All methods, criteria, targets and seeds; digits, where all come near 99 %, at 30 % alone."""
    for target in TARGETS:
        for seed in SEEDS:
            for case in cases:
                if case == "digits" and target != "30%":
                    continue
                for criterion in ("taylor", "magnitude"):
                    for method in METHODS:
                        yield Run(case, method, seed, target, criterion)
                yield Run(case, "oneshot", seed, target, "random")
                yield Run(case, "uniform", seed, target)
                if target == "30%":
                    yield Run(case, "uniform-long", seed, target)


PUBLISHED = {"estimate": 20, "improve": 20, "explore": 20, "grow": "mru", "source": "mru"}
"""Equal stages, and most recently used values."""
ABLATION: dict[str, dict[str, Any]] = {
    SAME_DENSE: {"grow": "zero"},
    "as published: equal stages, MRU": PUBLISHED,
    "as published, no exploration": {**PUBLISHED, "exploring": False},
    "no exploration (stage 4)": {"exploring": False},
    "no freezing": {"freeze": False},
    "no improvement (stage 3)": {"improve": 0},
    "explored growth": {"grow": "explored"},
    "MRU growth": {"grow": "mru"},
    "H, J, Q a third": {"cycles": 60},
    "H, J, Q three times": {"cycles": 7},
    "half of the rest reactivated": {"reactivate": 0.5},
    "a fifth of the rest reactivated": {"reactivate": 0.2},
    "updates stop at IoU 0.95": {"stop_iou": 0.95},
    "adaptive H and J": {"adaptive": True},
}


def ablation() -> Iterator[Run]:
    """What each part of IEE is worth, on one network."""
    for seed in SEEDS:
        for note, options in ABLATION.items():
            yield Run("resnet20_w32", "iee", seed, "30%", "taylor", options, note)


def equal_cost(cases: list[str]) -> Iterator[Run]:
    """What a training as dear as HALP's makes of IEE and of the uniform net beside it, one seed."""
    options = {"times": TIMES}
    for case in cases:
        yield Run(case, "iee", SEEDS[0], "30%", "taylor", options, EQUAL_COST)
        yield Run(case, "uniform", SEEDS[0], "30%", "", options, EQUAL_COST)


EXCHANGES: dict[str, dict[str, Any]] = {
    SAME_DENSE: {"grow": "zero"},
    "explored growth": {"grow": "explored"},
    "MRU growth": {"grow": "mru"},
    "MRU growth, explored from MRU": {"grow": "mru", "source": "mru"},
    "no exploration (stage 4)": {"exploring": False},
}
"""Of a trained network: whether channels change hands, and what that brings."""


def why(cases: list[str]) -> Iterator[Run]:
    """How well the widths do that HALP found, from random weights: what any search is worth there.

    And whether a trained network gains by what is exchanged.
    """
    for seed in SEEDS:
        for case in cases:
            yield Run(case, "halp-widths", seed, "30%", "taylor")
    for seed in EXCHANGE_SEEDS:
        for note, options in EXCHANGES.items():
            yield Run("mobilenet_v1", "iee-pretrained", seed, "30%", "taylor", options, note)


def importance(run: Run) -> tuple[Any, ...]:
    """The order of runs, so that what is there at any time can be compared."""
    after = run.note or run.method == "halp-widths"  # which reads what HALP found
    return "times" in run.options, TARGETS.index(run.target), bool(after), run.seed


def needs(runs: list[Run]) -> list[Run]:
    """The tables and dense networks that ``runs`` start from, first."""
    cases = list(dict.fromkeys(run.case for run in runs))
    tables = [Run(case, "table", 0) for case in cases]
    dense = [Run(case, "dense", seed) for case in cases for seed in SEEDS]
    return [*tables, *(d for d in dense if any(r.seed == d.seed for r in runs))]


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
    from iee_channels_summary import summarise

    summarise(results(), RUNS.parent)


def subset() -> None:
    """Every kind of run once, on digits and for few epochs; says that they all hold together."""
    if HOME is None:
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "IEE_CHANNELS_HOME": folder}
            subprocess.run([sys.executable, __file__, "--subset"], env=env, check=True)
        return
    runs = [
        Run("subset", method, 0, "50%", "taylor")
        for method in ("iee", "halp", "iee-pretrained", "torch-pruning")
    ]
    runs.append(Run("subset", "uniform", 0, "50%"))
    carry_out_all(runs, 2)
    from iee_channels_summary import summarise

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
