"""Sparse training: static, SET, RigL, GMP and IEE at equal steps and at equal training FLOPs.

    python benchmarks/sparse_training.py                 the comparisons, resumed where they stopped
    python benchmarks/sparse_training.py --beyond        what explains them, after them
    python benchmarks/sparse_training.py --subset        under a minute, for CI
    python benchmarks/sparse_training.py --only mlp steps --jobs 1
    python benchmarks/sparse_training.py --summary       only the tables and plots of what is there
    python benchmarks/sparse_training.py --plan          how many trainings, and what they took
    python benchmarks/sparse_training.py --trials rates  learning rates, on the validation images
    python benchmarks/sparse_training.py --trials forms  forms of IEE, likewise
    python benchmarks/sparse_training.py --trials lengths  the best of them, four times as long

Every training is one line of results/sparse_training_runs.jsonl, and is not repeated while its
settings stay the same. All methods of a case train for the same epochs with the same data order
from the same weights; `long` runs train for a multiple of them, for the comparison at equal FLOPs.
Accuracies are on the test images, which are drawn in fonts of their own; which cheaper form of IEE
is held against RigL was chosen on the validation images. Step times are measured interleaved in one
process, alone (`--only steps`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import code

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
NAME = "sparse_training"
TRIALS = f"{NAME}_trials.jsonl"
CACHE = HERE / ".cache" / NAME
"""Dense weights, which 2:4 patterns start from."""
LEVELS = ("80%", "90%", "95%", "98%")
METHODS = ("static", "set", "rigl", "gmp", "iee")


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained."""

    model: str
    data: str = "glyphs64"
    epochs: int = 6
    batch_size: int = 128
    lr: float = 0.4
    size: int = 16
    dense: tuple[str, ...] = ("first",)
    seeds: int = 3
    precision: str = "no"
    """Mixed precision of the training."""


CASES = {
    # the first layer has half of the weights: it is made sparse like the others
    "mlp": Case("glyph_mlp", dense=(), seeds=5),
    "resnet20": Case("resnet20", epochs=3, batch_size=64),
    "wrn22": Case("wrn22_narrow", epochs=3, batch_size=64, precision="bf16"),
    "subset": Case("glyph_mlp", data="digits", epochs=4, batch_size=64, dense=(), seeds=1),
}
RATES = (0.05, 0.1, 0.2, 0.4)
AT_RATES = {
    f"{name} at {rate}": replace(case, lr=rate, precision="no")
    for name, case in CASES.items()
    if name != "subset"
    for rate in RATES
}
"""Every network at every learning rate."""


@dataclass(frozen=True)
class Run:
    """One training: everything that decides its result."""

    case: str
    method: str
    seed: int
    level: str = ""
    distribution: str = "erk"
    pattern: str = "unstructured"
    length: int = 1
    from_dense: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """A name for this run and the settings of its case."""
        settings = asdict(self.settings)
        if settings["precision"] == "no":  # most rows are older than this setting
            del settings["precision"]
        facts = {**asdict(self), "settings": settings}
        facts.pop("note")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        parts = [self.case, self.method, self.level.rstrip("%") or self.pattern, str(self.seed)]
        return "-".join([*parts, digest])

    @property
    def settings(self) -> Case:
        """The network and how it is trained."""
        return (CASES | AT_RATES)[self.case]

    @property
    def network(self) -> str:
        """The case, whatever the learning rate."""
        return self.case.split(" at ")[0]

    @property
    def epochs(self) -> int:
        """In the case's epochs, dense ones included."""
        return self.length + (self.from_dense and self.method != "dense")


# --- which runs ---------------------------------------------------------------------------------

NO_STAGE_3, THIRD, HALF = {"improve": 0}, {"explore": "third"}, {"until": 0.5}
IOU, UNFROZEN = {"stop_iou": 0.9}, {"freeze": False}
TENTH = {"reactivate": 0.1, "sample": "gradient"}
CHEAPEST, BOTH = "a third of Q, exchanges until half", "no stage 3, updates stop at IoU 0.9"
"""The first is trained twice as long on the MLP; the second is IEE's default by now."""
PARTIAL = "a third of Q, a tenth reactivated, by gradient"
"""Costs little more than RigL."""
STAGES = "the paper's stages"
"""What all other forms change something of, and runs without a note are."""
CHEAPER: dict[str, dict[str, Any]] = {
    CHEAPEST: {**THIRD, **HALF},
    "no stage 3, a third of Q, exchanges until half": {**NO_STAGE_3, **THIRD, **HALF},
    BOTH: {**NO_STAGE_3, **IOU},
    PARTIAL: {**THIRD, **TENTH},
}
"""What costs less than IEE by default, the best of :data:`FORMS`."""
ABLATION: dict[str, dict[str, Any]] = {
    "no exploration (stage 4)": {"source": "mru", "explore": 0},
    "no freezing": UNFROZEN,
    "no stage 3": NO_STAGE_3,
    "grown at zero": {"grow": "zero"},
    "P from zero each time": {"source": "zero"},
    "P from MRU": {"source": "mru"},
    "grown at MRU": {"grow": "mru"},
    "exponential decay, grown at MRU (the paper's)": {"decay": "exponential", "grow": "mru"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "P keeps its momentum": {"momentum": "kept"},
    "global ranking": {"ranking": "global"},
    "Taylor": {"criterion": "taylor"},
}
"""Not told apart in small trials: at one level only."""
LONGER: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"80%": (2,), "90%": (2, 4), "95%": (2, 6), "98%": (3, 12), "uniform": (2, 4)},
    "resnet20": {"80%": (2,), "90%": (3,), "95%": (4,), "98%": (2, 7), "uniform": (3,)},
    "wrn22": {"80%": (2,), "90%": (3,), "95%": (4,), "98%": (6,), "uniform": (3,)},
}
"""Lengths of RigL, so that its curve of accuracy over FLOPs reaches what IEE costs."""
IOU_ALONE = "updates stop at IoU 0.9"
UNFROZEN_TOO = "no stage 3, no freezing, updates stop at IoU 0.9"
THRICE = {"every": "three times"}
FORMS: dict[str, dict[str, Any]] = {
    **CHEAPER,
    **ABLATION,
    "P keeps its momentum": OPTIONS["P keeps its momentum"],
    "a third of Q": THIRD,
    "a quarter reactivated": {"reactivate": 0.25},
    "a tenth reactivated, by gradient": TENTH,
    "a tenth reactivated, by gradient, grown at zero": {**TENTH, "grow": "zero"},
    IOU_ALONE: IOU,
    "exchanges until half": HALF,
    "a tenth exchanged": {"fraction": 0.1},
    "H three times, J and Q as they were": THRICE,
    "H and Q three times": {**THRICE, "explore": "three times"},
    "no stage 3, a third of Q": {**NO_STAGE_3, **THIRD},
    "no freezing, updates stop at IoU 0.9": {**UNFROZEN, **IOU},
    "no stage 3, no freezing": {**NO_STAGE_3, **UNFROZEN},
    UNFROZEN_TOO: {**NO_STAGE_3, **UNFROZEN, **IOU},
    "no stage 3, no freezing, a third of Q, exchanges until half": {
        **NO_STAGE_3,
        **UNFROZEN,
        **THIRD,
        **HALF,
    },
    "no stage 3, exchanges until half": {**NO_STAGE_3, **HALF},
    "no stage 3, Q of one step": {**NO_STAGE_3, "explore": 1},
    "no stage 3, Q of one step, P keeps its momentum": {
        **NO_STAGE_3,
        "explore": 1,
        "momentum": "kept",
    },
    "no stage 3, a third of Q, a tenth reactivated, by gradient": {**NO_STAGE_3, **THIRD, **TENTH},
}
"""What was tried before the comparisons, with one seed at 95 %."""

LASTING = {
    "mlp": (
        3,
        (
            *(("rigl", ""), ("iee", ""), ("iee", "no freezing"), ("iee", IOU_ALONE)),
            *(("iee", BOTH), ("iee", UNFROZEN_TOO)),
        ),
    ),
    "resnet20": (1, (*((method, "") for method in METHODS), ("iee", BOTH), ("iee", UNFROZEN_TOO))),
}
"""Seeds, and what is tried in longer trainings too."""

KINDS = ("rates", "forms", "lengths")


def trials(kind: str, cases: list[str]) -> list[Run]:
    """What is chosen by the validation images: learning rates, or forms of IEE.

    ``lengths`` asks whether the forms that are best here are so in a longer training too.
    """
    if kind == "lengths":
        return [
            Run(case, method, seed, "95%", length=length, options=FORMS.get(note, {}), note=note)
            for case, (seeds, tried) in LASTING.items()
            if case in cases
            for length in (1, 4)
            for seed in range(seeds)
            for method, note in tried
        ]
    if kind == "rates":
        return [
            Run(f"{case} at {rate}", method, 0, "" if method == "dense" else "95%")
            for case in cases
            for rate in RATES
            for method in ("dense", "rigl", "iee")
        ]
    forms = {"": {}, **FORMS}
    return [
        *(Run(case, "rigl", 0, "95%") for case in cases),
        *(
            Run(case, "iee", 0, "95%", options=options, note=note)
            for case in cases
            for note, options in forms.items()
        ),
    ]


def matrix(case: str) -> Iterator[Run]:
    """Everything about one network, the comparisons of most interest first."""
    seeds, small = range(CASES[case].seeds), case != "mlp"
    for seed in seeds:
        yield Run(case, "dense", seed)
        for level in LEVELS:
            for method in METHODS:
                yield Run(case, method, seed, level)
        for method in METHODS:
            yield Run(case, method, seed, "90%", "uniform")
    for seed in seeds:
        for level, distribution in (*((level, "erk") for level in LEVELS), ("90%", "uniform")):
            yield Run(case, "iee", seed, level, distribution, options=CHEAPER[BOTH], note=BOTH)
    # IEE is not above RigL there even at equal steps
    compared = (0,) if case == "wrn22" else seeds
    for seed in compared:
        for level, lengths in LONGER[case].items():
            which = ("90%", "uniform") if level == "uniform" else (level, "erk")
            for length in lengths:
                yield Run(case, "rigl", seed, *which, length=length)
                if length > 2 and not small:  # long trainings may want a lower rate
                    yield Run(f"{case} at 0.2", "rigl", seed, *which, length=length)
    for seed in {"mlp": seeds, "resnet20": (0,), "wrn22": ()}[case]:
        for level in ("90%", "98%") if small else ("90%", "95%", "98%"):
            for note, options in CHEAPER.items():
                yield Run(case, "iee", seed, level, options=options, note=note)
                if note == CHEAPEST and not small:
                    yield Run(case, "iee", seed, level, length=2, options=options, note=note)
    for seed in compared if small else ():  # the form that comes nearest to RigL
        yield Run(case, "iee", seed, "98%", options=CHEAPER[PARTIAL], note=PARTIAL)
    for seed in seeds if not small else ():
        yield from two_of_four(case, seed)
        yield Run(case, "static", seed, pattern="2:4", length=2, from_dense=True)
        yield Run(case, "iee", seed, pattern="2:4", from_dense=True)
    for seed in seeds if not small else ():
        for level in ("90%", "98%"):
            for note, options in (ABLATION | (OPTIONS if level == "98%" else {})).items():
                yield Run(case, "iee", seed, level, options=options, note=note)


def two_of_four(case: str, seed: int) -> Iterator[Run]:
    """IEE's 2:4 weights and those of the largest magnitudes."""
    yield Run(case, "static", seed, pattern="2:4", from_dense=True)
    own = {"options": CHEAPER[BOTH], "note": BOTH}
    yield Run(case, "iee", seed, pattern="2:4", from_dense=True, **own)


def beyond(case: str) -> Iterator[Run]:
    """What more steps bring a convolutional network, and its 2:4 weights."""
    if case != "resnet20":
        return
    for seed in range(CASES[case].seeds):
        for method in ("static", "set", "rigl"):
            yield Run(case, method, seed, "95%", length=4)
        yield Run(case, "iee", seed, "95%", length=4, options=CHEAPER[BOTH], note=BOTH)
        yield from two_of_four(case, seed)
    for method in ("gmp", "iee"):
        yield Run(case, method, 0, "95%", length=4)


# --- carrying a run out -------------------------------------------------------------------------


def datasets(case: Case) -> tuple[Any, Any]:
    """Data with the validation images, and with the test images."""
    from prunekit.train import load_data

    if case.data == "digits":
        data = load_data("digits", (3, case.size, case.size), 0)
        return data, data
    import glyphs

    shape = (3, case.size, case.size)
    return glyphs.glyphs(shape, False, 64), glyphs.glyphs(shape, True, 64)


def build(case: Case, classes: int, seed: int) -> Any:
    """The case's network with the seed's weights."""
    import nets
    import torch

    from prunekit import zoo

    torch.manual_seed(seed)
    make: Callable[..., Any] = getattr(nets, case.model, None) or getattr(zoo, case.model)
    # convolutions take a third less time on a CPU so
    return make(classes, 3).to(memory_format=torch.channels_last)


def sparsifier(run: Run, model: Any, steps: int) -> Any:
    """The run's method on ``model``."""
    import torch

    import prunekit as pk

    case, options = run.settings, dict(run.options)
    criterion = {"taylor": pk.Taylor}.get(options.pop("criterion", ""), pk.Magnitude)()
    ranking = options.pop("ranking", "layer")
    schedule = pk.sparsify.SparsitySchedule(steps, seed=run.seed)
    stage = schedule.lengths(exploring=True)[0]
    lengths = {"third": max(1, stage // 3), "three times": 3 * stage}
    options = {name: lengths.get(value, value) for name, value in options.items()}
    if run.method == "iee":  # forms are told by what they change of the paper's stages
        options = {"improve": stage, "stop_iou": 1.0, **options}
    return pk.sparsify.METHODS[run.method](
        model,
        run.level or None,
        pk.sparsify.SparsitySchedule(steps, seed=run.seed, **options),
        distribution=run.distribution,
        pattern=run.pattern,
        criterion=criterion,
        ranking=ranking,
        dense=case.dense,
        start="scores" if run.from_dense else "random",
        example=torch.randn(1, 3, case.size, case.size),
    )


def carry_out(run: Run) -> dict[str, Any]:
    """Train and test; in a process of its own."""
    import torch
    from bf16 import emulate_where_slow

    from prunekit.sparsify import verify
    from prunekit.support.progress import verbosity
    from prunekit.train import TrainConfig, evaluate, fit, loader

    verbosity.level = -1
    torch.set_num_threads(1)
    case = run.settings
    if case.precision == "bf16":
        emulate_where_slow()
    data, test = datasets(case)
    model = build(case, data.num_classes, run.seed)
    per_epoch = len(loader(data.train, case.batch_size, run.seed))
    config = {
        "batch_size": case.batch_size,
        "seed": run.seed,
        "mixed_precision": case.precision,
    }
    seconds = work = 0.0
    if run.from_dense or run.method == "dense":
        seconds, work = trained(run, model, data, config), 1.0
        accuracy = evaluate(model, data.val)
    result: dict[str, Any] = {}
    if run.method != "dense":
        epochs = case.epochs * run.length
        rule = sparsifier(run, model, epochs * per_epoch)
        lr = case.lr / 5 if run.from_dense else case.lr
        found = fit(model, data, TrainConfig(epochs=epochs, lr=lr, **config), rule=rule)
        verify(model, rule.plan)
        seconds, accuracy = seconds + found.seconds, found.accuracy
        work += rule.work / (case.epochs * per_epoch)
        rows = [row for row in rule.history if row["survival"] is not None]
        result = {
            "sparsity": rule.plan.sparsity,
            "overall_sparsity": rule.plan.overall,
            "survival": rule.survival(),
            "next_survival": statistics.mean(r["survival"] for r in rows) if rows else None,
            "iou": [round(row["iou"], 4) for row in rule.history],
            "inputless": inputless(rule),
        }
    return {
        "val": accuracy,
        "test": evaluate(model, test.val),
        "relative_flops": work,
        "seconds": seconds,
        **result,
    }


def trained(run: Run, model: Any, data: Any, config: dict[str, Any]) -> float:
    """Train the dense network of this case and seed, once; the seconds that it took."""
    from safetensors.torch import load_model, save_model

    from prunekit.train import TrainConfig, fit

    case = run.settings
    path = CACHE / f"{Run(run.case, 'dense', run.seed).key}.safetensors"
    told = path.with_suffix(".json")
    if not told.is_file():
        found = fit(model, data, TrainConfig(epochs=case.epochs, lr=case.lr, **config))
        CACHE.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
        told.write_text(json.dumps(found.seconds))
    load_model(model, str(path))
    return float(json.loads(told.read_text()))


def inputless(rule: Any) -> float:
    """The share of outputs of sparse layers that no weight leads to."""
    dead = sum(int((~mask.flatten(1).any(1)).sum()) for mask in rule.masks.values())
    return dead / sum(len(mask) for mask in rule.masks.values())


def environment() -> dict[str, Any]:
    """The machine, and what is installed."""
    from prunekit.core.target import Target, package_version
    from prunekit.runtimes import runtime_for

    target = Target.parse("onnxruntime:cpu", threads=1)
    return {**asdict(runtime_for(target).environment(target)), "torch": package_version("torch")}


# --- step times ---------------------------------------------------------------------------------


def step_times(case_name: str) -> list[dict[str, Any]]:
    """Every method's steps over dense ones, in whole trainings that take turns step by step.

    The range is over ninths of the training.
    """
    import torch
    from torch.nn import functional as F

    from prunekit.train import loader

    torch.set_num_threads(1)
    case = CASES[case_name]
    data, _ = datasets(case)
    batches = loader(data.train, case.batch_size, 0)
    total = case.epochs * len(batches)
    trainings = {}
    for method in ("dense", *METHODS):
        model = build(case, data.num_classes, 0)
        optimizer = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        rule = None
        if method != "dense":
            own = CHEAPER[BOTH] if method == "iee" else {}  # which is its default
            rule = sparsifier(Run(case_name, method, 0, "90%", options=own), model, total)
        trainings[method] = (model, optimizer, rule)

    def timed(method: str, batch: Any) -> tuple[float, bool]:
        model, optimizer, rule = trainings[method]
        model.train()
        explores = rule is not None and rule.stage == "explore"
        images, labels = batch
        began = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        if rule is None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            rule.step(optimizer)
        return time.perf_counter() - began, explores

    times: dict[str, list[tuple[float, float]]] = {method: [] for method in trainings}
    every = [batch for _ in range(case.epochs) for batch in batches]
    for step, batch in enumerate(every):
        if step % (total // 9) == 0 and len(times["dense"]) < 9:
            for method in trainings:
                times[method].append((0.0, 0.0))
        for method in trainings if step % 2 else reversed(trainings):
            spent, explored = timed(method, batch)
            if step >= 5:  # the first few warm up
                whole, exploring = times[method][-1]
                times[method][-1] = whole + spent, exploring + explored * spent
    rows = []
    dense = [whole for whole, _ in times["dense"]]
    for method in METHODS:
        mine = [whole for whole, _ in times[method]]
        ratios = [own / its for own, its in zip(mine, dense, strict=True)]
        rows.append(
            {
                "case": case_name,
                "method": method,
                "dense_step_ms": 1e3 * sum(dense) / (total - 5),
                "ratio": sum(mine) / sum(dense),
                "ratio_range": [min(ratios), max(ratios)],
                "exploring_share": sum(exploring for _, exploring in times[method]) / sum(mine),
            }
        )
    return rows


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


def form(run: Run) -> str:
    """What a run is told by: nothing for a method's defaults, :data:`STAGES` for the paper's."""
    if run.method != "iee":
        return run.note
    return "" if run.note == BOTH else run.note or STAGES


def summarise(folder: Path) -> None:
    from sparse_training_summary import summarise as sum_up

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


SUBSET = (
    Run("subset", "dense", 0),
    *(Run("subset", method, 0, "95%") for method in METHODS),
    Run("subset", "rigl", 0, "95%", length=8),
    Run("subset", "iee", 0, "95%", options=CHEAPER[CHEAPEST], note=CHEAPEST),
    Run("subset", "iee", 0, "95%", options={"freeze": False}, note="no freezing"),
    Run("subset", "static", 0, pattern="2:4", from_dense=True),
    Run("subset", "iee", 0, pattern="2:4", from_dense=True),
)
"""Every kind of run once, on digits."""


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
