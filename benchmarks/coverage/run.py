"""What prunekit can prune of 53 architectures, and whether what comes out is right.

    python -m benchmarks.coverage.run                 all models, resumed where it stopped
    python -m benchmarks.coverage.run --subset        ten models in a few minutes, for CI
    python -m benchmarks.coverage.run --only swin_t yolov8n --jobs 1

Every model is traced (blocks with branches folded before), slimmed by about 30 % wherever it can
be, compared with the masked network, saved, loaded in another process and exported, all in a
process of its own with a limit on time and memory. A step that fails says why in a line and the
others go on. Results are kept by model and by the source of what is run, so that it is not
measured twice unchanged (`--fresh` does).
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.common import RESULTS, save
from benchmarks.coverage.models import CASES, SUBSET, Case, build, enliven_, image

HERE = Path(__file__).parents[1]
CACHE = HERE / ".cache" / "coverage.jsonl"
gc.set_threshold(100_000, 20, 20)  # a quarter of an export's time, in every process of a model
LOCK = Lock()
KEEP = 0.7
"""Share of each group's channels that stays, give or take a tenth."""
BATCHES = (2, 3)
TRACE_SECONDS, TRACE_GB = 20.0, 4.0
SLIM_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
MEMORY_GB = 10.0
"""A model that wants more than this fails alone, not the machine."""
CRASHED = "crashed"
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = (
    "torch",
    "torchvision",
    "timm",
    "onnxruntime",
    "torch._dynamo",
    "prunekit.exporting.onnx",
)
"""Imported once: every process of a model is a fork of one that has done nothing else."""
FILES = (
    *("core/graph", "core/plan", "networks/slimming", "networks/masking", "networks/folding"),
    *("networks/saved", "networks/build", "exporting/onnx"),
)
"""What of the package decides about the results, beside ``tracing``."""
STEPS = ("trace", "slim", "load", "onnx")

Row = dict[str, Any]


# --- one model, in a process of its own ---------------------------------------------------------


def measure(name: str, folder: Path) -> None:
    """Carry every step out and write ``folder/row.json`` after each, should the next one crash."""
    os.setpgid(0, 0)  # stopped as a whole, and by no Ctrl-C
    with (folder / "stderr").open("w") as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "w") as file:
        os.dup2(file.fileno(), 1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_GB * 1e9),) * 2)
    loader = Loader(name, folder)
    import torch

    import prunekit as pk
    from prunekit.networks.folding import folded_blocks

    torch.set_num_threads(1)
    case, row = CASES[name], Row()
    written = folder / "row.json"

    @contextmanager
    def step(name: str) -> Iterator[Row]:
        entry: Row = {"ok": False, "reason": ""}
        row[name] = {**entry, "reason": CRASHED}
        written.write_text(json.dumps(row))
        started = time.monotonic()
        try:
            yield entry
        except Exception as error:  # whatever a model's code raises
            entry["reason"] = one_line(error)
        entry.setdefault("seconds", round(time.monotonic() - started, 2))
        row[name] = {**entry, "ok": not entry["reason"]}
        written.write_text(json.dumps(row))

    graph = small = None
    example = image(case, 1, 1)
    with step("build") as entry:
        model = build(case, 0)
        enliven_(model, example, 0)
        model = pk.reparameterize(model, example)
        entry["folded"] = len(folded_blocks(model))
        entry["millions"] = round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
        entry["gb"] = peak_gb()
    if not row["build"]["ok"]:
        return
    with step("trace") as entry:
        started = time.monotonic()
        try:
            graph = pk.trace(model, example)
        finally:
            entry.update(seconds=round(time.monotonic() - started, 2), gb=peak_gb())
        entry.update(facts(graph))
    if graph is None:
        return
    plan = plan_of(graph)
    with step("slim") as entry:
        entry["macs_kept"] = round(graph.macs(plan.widths) / graph.macs({}), 4)
        entry.update(compare_masked(case, model, plan, example))
        small = pk.slim(model, plan)
        entry["reason"] = wrong_width(graph, plan, small) or entry["reason"]
    if small is None:
        return
    with step("load") as entry:
        run = folder / "run"
        pk.save(run, small, plan, case.spec, input_shapes=(tuple(example.shape),))
        outputs = loader.outputs()
        with torch.no_grad():
            expected = leaves(copy.deepcopy(small)(image(case, 2, 2)))
        same = len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
        entry["reason"] = "" if same else "outputs differ after loading"
    with step("onnx") as entry:
        entry["relative"] = compare_onnx(case, small, example, folder / "model.onnx")


def one_line(error: BaseException) -> str:
    """What went wrong, in a line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def peak_gb() -> float:
    """Peak memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def leaves(value: Any) -> list[Any]:
    """All tensors of an output."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def facts(graph: Any) -> Row:
    """What a graph says of its model."""
    frozen = [group for group in graph.groups if not group.prunable]
    return {
        "share": round(graph.prunable_macs_share(), 4),
        "layers": len(graph.layers),
        "groups": len(graph.groups),
        "prunable_groups": len(graph.groups) - len(frozen),
        "frozen": dict(Counter(group.reason or "no reason given" for group in frozen)),
        "notes": list(graph.notes),
    }


def plan_of(graph: Any) -> Any:
    """A random plan that narrows every prunable group, by about the same share."""
    import numpy as np

    from prunekit.core.plan import ChannelPlan

    rng = np.random.default_rng(0)
    keep = {}
    for group in graph.groups:
        narrower = np.array(group.widths()[:-1])
        if group.prunable and narrower.size:
            wanted = KEEP * group.size * rng.uniform(0.9, 1.1)
            width = narrower[np.abs(narrower - wanted).argmin()]
            keep[group.id] = rng.permutation(group.size)[:width].tolist()
    return ChannelPlan.from_keep(graph, keep)


def wrong_width(graph: Any, plan: Any, small: Any) -> str:
    """The first layer whose widths are not those the graph predicts, in words, or nothing."""
    modules = dict(small.named_modules())
    for layer in graph.layers:
        module = modules[layer.name]
        for side in ("in", "out"):
            kind = "features" if hasattr(module, "in_features") else "channels"
            found, predicted = getattr(module, f"{side}_{kind}"), layer.width(side, plan.widths)
            if found != predicted:
                return f"{layer.name} has {found} {side} channels, predicted {predicted}"
    return ""


def compare_masked(case: Case, model: Any, plan: Any, example: Any) -> Row:
    """How far slim and masked outputs are apart, in float64 where the model can."""
    import torch

    import prunekit as pk

    for dtype in (torch.float64, torch.float32):
        exact, given = copy.deepcopy(model).to(dtype), example.to(dtype)
        try:
            with torch.no_grad():
                dense = leaves(exact(given))
        except RuntimeError:
            if dtype == torch.float32:
                raise
            continue
        break
    with torch.no_grad():
        found = leaves(pk.slim(exact, plan)(given))
        masked = leaves(pk.mask_(exact, plan)(given))
    relative = apart(masked, found)
    row: Row = {"dtype": str(dtype).removeprefix("torch."), "relative": relative, "reason": ""}
    shapes = [[list(t.shape) for t in side] for side in (dense, found)]
    if case.part != "whole" and shapes[0] != shapes[1]:
        row["reason"] = f"output shapes {shapes[0]} became {shapes[1]}"
    elif relative is None:
        row["reason"] = "slim and masked outputs have other shapes, or are not numbers"
    elif not plan.is_dense and apart(dense, masked) == 0:
        row["reason"] = "the plan changes nothing in the outputs, so nothing was shown"
    return row


def apart(expected: list[Any], found: list[Any]) -> float | None:
    """Largest difference relative to the largest entry, over all outputs; None if incomparable."""
    import torch

    if [t.shape for t in expected] != [t.shape for t in found]:
        return None
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        if left.numel():
            left, right = left.double(), right.double()
            relative = (left - right).abs().max() / left.abs().max().clamp_min(1e-12)
            if not torch.isfinite(relative):
                return None
            worst = max(worst, float(relative))
    return worst


class Loader:
    """A process that loads the saved network; it is forked before there is any model."""

    def __init__(self, name: str, folder: Path) -> None:
        self.out = folder / "outputs.safetensors"
        there, self.here = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context("fork").Process(
            target=load, args=(CASES[name], folder / "run", self.out, there), daemon=True
        )
        self.process.start()

    def outputs(self) -> list[Any]:
        """The outputs of the loaded network."""
        from safetensors.torch import load_file

        self.here.send("saved")
        self.process.join()
        if self.process.exitcode:
            said = self.out.with_suffix(".error")
            raise RuntimeError(said.read_text() if said.is_file() else "the process crashed")
        tensors = load_file(self.out)
        return [tensors[str(number)] for number in range(len(tensors))]


def load(case: Case, run: Path, out: Path, saved: Any) -> None:
    """The other process: the structure from the plan alone where that is enough."""
    saved.recv()
    import torch
    from safetensors.torch import save_file

    import prunekit as pk

    torch.set_num_threads(1)
    alone = not case.part and not case.spec.startswith("ultralytics")
    try:
        small = pk.load(run) if alone else pk.load(run, build(case, 1))
        with torch.no_grad():
            outputs = leaves(small(image(case, 2, 2)))
    except Exception as error:
        out.with_suffix(".error").write_text(one_line(error))
        raise SystemExit(1) from None
    save_file({str(n): t.contiguous().clone() for n, t in enumerate(outputs)}, out)


def compare_onnx(case: Case, small: Any, example: Any, path: Path) -> dict[str, float]:
    """Export and run at two batch sizes, neither of them the example's."""
    import onnxruntime
    import torch

    import prunekit as pk

    # YOLO keeps its last input's shape: the copies leave what is exported as slim made it
    pk.export(small, example, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    relative = {}
    for batch in BATCHES:
        given = image(case, batch, batch)
        with torch.no_grad():
            expected = leaves(copy.deepcopy(small)(given))
        found = [torch.as_tensor(array) for array in session.run(None, {name: given.numpy()})]
        difference = apart(expected, found)
        if difference is None:
            raise ValueError(f"outputs of other shapes, or not numbers, at batch {batch}")
        relative[str(batch)] = difference
    return relative


# --- all models ---------------------------------------------------------------------------------


def source_hash() -> str:
    """Identity of what of the package's source is run here."""
    digest = hashlib.sha256()
    package = HERE.parent / "prunekit"
    files = [*(package / f"{name}.py" for name in FILES), *package.glob("tracing/**/*.py")]
    for path in sorted(files):
        digest.update(f"{path.relative_to(package)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def key_of(case: Case, source: str) -> str:
    """What a row is cached under."""
    settings = ",".join(map(str, asdict(case).values()))
    return f"{case.name} {hashlib.sha256(settings.encode()).hexdigest()[:6]} {source}"


def cached(limit: float) -> dict[str, Row]:
    """Rows kept so far, by key, less those of models stopped sooner than ``limit`` seconds.

    A line that an interrupt cut short counts for nothing.
    """
    rows: dict[str, Row] = {}
    if CACHE.is_file():
        for line in CACHE.read_text().splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                rows[row["key"]] = row
    return {key: row for key, row in rows.items() if row.get("stopped_after", limit) >= limit}


def carry_out(case: Case, limit: float) -> Row:
    """One model's row, from a process of its own, which is stopped after ``limit`` seconds."""
    key = key_of(case, source_hash())
    started = time.monotonic()
    stopped: Row = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = FORKS.Process(target=measure, args=(case.name, folder))
        process.start()
        process.join(limit)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            ending = f"stopped after {limit:.0f} s for the model"
            stopped = {"stopped_after": limit}
        else:
            said = (folder / "stderr").read_text().strip().splitlines() or ["no message"]
            ending = f"exit {process.exitcode}: {said[-1][:300]}"
        written = folder / "row.json"
        steps = json.loads(written.read_text()) if written.is_file() else {}
    for entry in steps.values():
        if entry["reason"] == CRASHED:
            entry["reason"] = ending
    reached = list(steps) or ["build"]
    steps.setdefault("build", {"ok": False, "reason": ending})
    for name in STEPS:
        last = steps[reached[-1]]["reason"] or ending
        steps.setdefault(name, {"ok": False, "reason": f"not reached ({reached[-1]}: {last})"})
    row: Row = {
        "key": key,
        "model": case.name,
        "input": f"1x3x{case.size}x{case.size}",
        "required_share": case.share,
        "total_seconds": round(time.monotonic() - started, 1),
        **stopped,
        **steps,
    }
    with LOCK:
        CACHE.parent.mkdir(exist_ok=True)
        with CACHE.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


def carry_out_all(cases: list[Case], jobs: int, limit: float) -> Iterator[tuple[Case, Row]]:
    """Rows in the order of ``cases``; an interrupt waits for the models that are running only."""
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = [(case, pool.submit(carry_out, case, limit)) for case in cases]
        for case, future in waiting:
            yield case, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def failures(case: Case, row: Row) -> list[str]:
    """What of the row is not as required, each with its value."""
    found = [
        f"{name}: {row[name]['reason']}"
        for name in ("build", *STEPS)
        if not row[name]["ok"] and not row[name]["reason"].startswith("not reached")
        if name != "onnx" or case.part != "whole"
    ]
    trace, slim, onnx = row["trace"], row["slim"], row["onnx"]
    if trace.get("share", 1.0) < case.share:
        found.append(f"{trace['share']:.0%} of the MACs prunable, {case.share:.0%} required")
    if trace.get("seconds", 0.0) > TRACE_SECONDS:
        found.append(f"traced in {trace['seconds']:.0f} s, {TRACE_SECONDS:.0f} allowed")
    if trace.get("gb", 0.0) > TRACE_GB:
        found.append(f"traced in {trace['gb']:.1f} GB, {TRACE_GB:.0f} allowed")
    if (slim.get("relative") or 0.0) > SLIM_TOLERANCE:
        found.append(f"slim and masked are {slim['relative']:.0e} apart")
    if (worst := max(onnx.get("relative", {"": 0.0}).values())) > ONNX_TOLERANCE:
        found.append(f"ONNX and PyTorch are {worst:.0e} apart")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subset", action="store_true", help="ten models, written nowhere")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="by spec or bare name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--fresh", action="store_true", help="measure again what is cached")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE.parent), os.environ.get("PYTHONPATH", "")))
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    FORKS.set_forkserver_preload([*PRELOADED])
    chosen = choose(parser, arguments)
    source = source_hash()
    rows = {} if arguments.fresh else cached(arguments.limit)
    waiting = []
    for case in chosen:
        if case.missing:
            print(f"{case.name}: {case.missing} is not installed, skipped")
        elif key_of(case, source) not in rows:
            waiting.append(case)
    table = {case: rows[key] for case in chosen if (key := key_of(case, source)) in rows}
    for case, row in carry_out_all(waiting, arguments.jobs, arguments.limit):
        table[case] = rows[row["key"]] = row
        wrong = "; ".join(failures(case, row))
        print(f"{case.name}: {wrong or 'pass'} ({row['total_seconds']:.0f} s)", flush=True)
    print("\n" + "\n".join(markdown([table[case] for case in chosen if case in table])) + "\n")
    if source_hash() != source:
        print("the package's source changed meanwhile: nothing written, run it again")
        return 1
    everything = {case: rows.get(key_of(case, source)) for case in CASES.values()}
    if all(row or case.missing for case, row in everything.items()):
        write([row for row in everything.values() if row], source)
    passed = sum(not failures(case, row) for case, row in table.items())
    print(f"{passed} of {len(table)} pass, {len(chosen) - len(table)} skipped")
    return int(passed < len(table))


def choose(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Case]:
    """The cases asked for, in their order."""
    names = SUBSET if arguments.subset else arguments.only
    if names is None:
        return list(CASES.values())
    for name in names:
        if not any(case.answers_to(name) for case in CASES.values()):
            parser.error(f"unknown model {name!r}; known: {', '.join(CASES)}")
    return [c for c in CASES.values() if any(c.answers_to(name) for name in names)]


# --- results ------------------------------------------------------------------------------------


def write(rows: list[Row], source: str) -> None:
    """``results/coverage.json`` and ``results/coverage.md``."""
    from prunekit.core.target import cpu_environment, package_version

    packages = {
        name: version
        for name in ("torch", "torchvision", "timm", "ultralytics", "torch-pruning", "onnx")
        if (version := package_version(name)) != "unknown"
    }
    runtime = f"onnxruntime {package_version('onnxruntime')}"
    skipped = {case.name: case.missing for case in CASES.values() if case.missing}
    result = {
        "environment": asdict(cpu_environment(runtime, packages)),
        "prunekit_source": source,
        "limits": {
            "trace_seconds": TRACE_SECONDS,
            "trace_gb": TRACE_GB,
            "slim_relative": SLIM_TOLERANCE,
            "onnx_relative": ONNX_TOLERANCE,
        },
        "not_installed": skipped,
        "models": [{**row, "failures": failures(CASES[row["model"]], row)} for row in rows],
    }
    save("coverage", result)
    head = [
        "# Architectures: what can be pruned, and whether the result is right",
        "",
        "Written by `python -m benchmarks.coverage.run` on "
        f"{result['environment']['device_name']}, "
        f"{runtime}, {', '.join(f'{name} {v}' for name, v in packages.items())}. Random weights; "
        "all prunable groups narrowed by about 30 %, which leaves about half of the MACs where "
        "every layer is narrowed on both sides. Prunable MACs are those of layers that a prunable "
        "group narrows on one side at least. Differences are relative to the largest output; GB "
        "is the whole process's peak at the end of tracing and its proof, on one thread.",
        "",
    ]
    if skipped:
        head += [f"Not installed, skipped: {', '.join(skipped)}.", ""]
    (RESULTS / "coverage.md").write_text("\n".join([*head, *markdown(rows)]) + "\n")
    print("wrote benchmarks/results/coverage.md")


COLUMNS = (
    "model",
    "input",
    "prunable MACs",
    "required",
    "groups",
    "MACs left",
    "masked - slim",
    "loaded",
    "ONNX - torch",
    "trace s",
    "GB",
    "verdict",
)


def markdown(rows: list[Row]) -> list[str]:
    """The table, why verdicts fail, and why groups are frozen."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    failed: list[str] = []
    frozen: list[str] = []
    for row in rows:
        case = CASES[row["model"]]
        wrong = failures(case, row)
        lines.append(f"| {' | '.join((*cells(case, row), 'FAIL' if wrong else 'pass'))} |")
        failed += [f"- {case.name}: {'; '.join(wrong)}"] if wrong else []
        if case.part == "whole" and not row["onnx"]["ok"]:
            failed.append(f"- {case.name} (not required): onnx: {row['onnx']['reason']}")
        if reasons := row["trace"].get("frozen"):
            frozen.append(f"- {case.name}: {summary(reasons)}")
    for title, entries in (("What fails", failed), ("Why groups are frozen", frozen)):
        if entries:
            lines += ["", f"## {title}", "", *entries]
    return lines


def cells(case: Case, row: Row) -> Iterable[str]:
    """A row of the table up to its verdict."""
    trace, slim, onnx = row["trace"], row["slim"], row["onnx"]

    def shown(entry: Row, key: str, write: Callable[[Any], str]) -> str:
        value = entry.get(key)
        return "-" if value is None else write(value)

    return (
        case.name,
        row["input"],
        shown(trace, "share", "{:.1%}".format),
        f"{case.share:.0%}" if case.share else "-",
        shown(trace, "groups", lambda total: f"{trace['prunable_groups']}/{total}"),
        shown(slim, "macs_kept", "{:.0%}".format),
        shown(slim, "relative", "{:.0e}".format),
        "equal" if row["load"]["ok"] else "-",
        shown(onnx, "relative", lambda both: f"{max(both.values()):.0e}"),
        shown(trace, "seconds", "{:.1f}".format),
        shown(trace, "gb", "{:.2f}".format),
    )


def summary(reasons: dict[str, int]) -> str:
    """The kinds of reasons, most frequent first: the names in them left out."""
    kinds: Counter[str] = Counter()
    for reason, count in reasons.items():
        kinds[re.sub(r"\S*(\d\S*|\w\.\w\S*)", "..", reason)[:110].replace("|", "/")] += count
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(4)]
    rest = sum(kinds.values()) - sum(count for _, count in kinds.most_common(4))
    return "; ".join([*shown, *([f"{rest} others"] if rest else [])])


if __name__ == "__main__":
    sys.exit(main())
