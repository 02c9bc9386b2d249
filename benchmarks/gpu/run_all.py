"""Everything about one GPU in one command: at most 25 minutes, the most valuable first.

    python benchmarks/gpu/run_all.py            on a GPU; what is finished is not done again
    python benchmarks/gpu/run_all.py --dry      the script itself, on the fake target and the CPU

Sections run in order, each with a limit of its own; one that cannot run says why, one that fails
says how, and the others go on. The result is written after every section. Needs no network.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import prunekit as pk
from prunekit.core.plan import ChannelPlan
from prunekit.core.target import Target
from prunekit.core.timing import interleaved_order, paired_ratio
from prunekit.exporting import live_artifact
from prunekit.networks.saved import open_model
from prunekit.profiling import HarvestPlan
from prunekit.profiling.probing import probe
from prunekit.runtimes import Engine, runtime_for
from prunekit.runtimes.nvidia.gpu import best_gpu
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import PrunekitError
from prunekit.support.registry import runtimes

RESULTS = Path(__file__).parents[1] / "results"
TOTAL_SECONDS = 25 * 60
GRANULARITIES = (1, 8, 16, 32, 64)
HELD_OUT = 10


class SkippedError(Exception):
    """A section that cannot run here, and why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large: ``dry`` proves the script, on targets that every machine has."""

    dry: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    def target(self, precision: str, batch: int) -> Target:
        """PyTorch on the GPU."""
        if self.dry:
            return Target("fake", "cpu", precision, batch)
        return Target("torch", "cuda", precision, batch)

    def live(self, precision: str, batch: int) -> Target:
        """The same where a live module has to run."""
        if self.dry:
            return Target("torch", "cpu", "fp32", batch)
        return Target("torch", "cuda", precision, batch)

    def model(self, name: str) -> str:
        return "zoo:resnet20" if self.dry else f"torchvision:{name}"

    def shape(self, batch: int) -> tuple[int, ...]:
        return (batch, 3, 16, 16) if self.dry else (batch, 3, 224, 224)

    def seconds(self, real: float) -> float:
        return min(real, 1.0) if self.dry else real

    def graph(self, name: str, batch: int) -> tuple[nn.Module, pk.ChannelGraph, torch.Tensor]:
        """A model with random weights, its channel groups and an input."""
        torch.manual_seed(0)
        module = open_model(self.model(name)).module.eval()
        example = torch.randn(self.shape(batch))
        return module, pk.trace(module, example), example

    def table(self, name: str, target: Target) -> Path:
        text = f"{name}-{target.runtime}-{target.precision}-{target.batch}"
        return self.folder / f"{text}.json"


# --- the sections -----------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Runtimes with their versions, or why they are not here."""
    found = {}
    for name in runtimes.names():
        runtime = runtimes.get(name)()
        for device in runtime.devices:
            target = Target(name, device)
            reason = runtime.unavailable(target)
            where = None if reason else asdict(runtime.environment(target))
            found[str(target)] = {"unavailable": reason} if reason else where
    return {"targets": found, "python": sys.version.split()[0], "torch": torch.__version__}


def prediction(
    setting: Setting, name: str, target: Target, seconds: float, nets: int = 10
) -> dict[str, Any]:
    """A profile, and its error on networks it has never seen, timed beside the dense one."""
    module, graph, example = setting.graph(name, target.batch)
    plan = HarvestPlan(
        nets=nets if not setting.dry else 4, rounds=3, max_seconds=setting.seconds(seconds)
    )
    began = time.monotonic()
    table = pk.harvest(
        module,
        graph,
        example,
        target,
        plan=plan,
        name=setting.model(name),
        granularity=8 if setting.dry else None,
    )
    took = time.monotonic() - began
    path = setting.table(name, target)
    table.save(path)
    rng = np.random.default_rng(1)
    keeps = rng.uniform(0.3, 0.95, 2 if setting.dry else HELD_OUT)
    plans = [
        ChannelPlan.random(graph, keep=float(keep), seed=100 + n, granularity=table.granularity)
        for n, keep in enumerate(keeps)
    ]
    measured = _ratios(setting, module, example, plans, target, seconds / 2)
    dense = pk.predict(graph, ChannelPlan.dense(graph), table).ms
    rows = []
    for plan_, ratio in zip(plans, measured, strict=True):
        predicted = pk.predict(graph, plan_, table).ms / dense
        rows.append({"predicted": predicted, "measured": ratio, "error": predicted / ratio - 1})
    errors = [abs(row["error"]) for row in rows]
    return {
        "target": target.describe(),
        "profile_seconds": took,
        "granularity": table.granularity,
        "probe": None if table.probe is None else str(table.probe),
        "dense_ms": table.networks[0].end_to_end_us / 1e3,
        "throttled": list(table.environment.throttled),
        "held_out_mape": float(np.mean(errors)),
        "held_out_worst": float(np.max(errors)),
        "networks": rows,
    }


def _artifact(module: nn.Module, example: torch.Tensor, target: Target, path: Path) -> Any:
    if runtime_for(target).artifact_format == "module":
        return live_artifact(module, example)
    precision = target.precision if target.precision in ("fp16", "int8") else "fp32"
    return pk.export(module, example, path, precision)


def _ratios(
    setting: Setting,
    module: nn.Module,
    example: torch.Tensor,
    plans: list[ChannelPlan],
    target: Target,
    seconds: float,
) -> list[float]:
    """Measured latency of every plan over the dense network's, all interleaved."""
    with tempfile.TemporaryDirectory() as name:
        nets = [module, *(pk.slim(module, plan) for plan in plans)]
        made = [
            _artifact(net, example, target, Path(name) / f"{n}.onnx") for n, net in enumerate(nets)
        ]
        found = pk.bench(made, target, max_seconds=setting.seconds(seconds))
    return [ratio.ratio for ratio in found.ratios]


def prune(
    setting: Setting, name: str, target: Target, share: str, seconds: float
) -> dict[str, Any]:
    """The command itself: asked, measured, met; with the table of the profile before."""
    output = setting.folder / f"prune-{name}-{target.runtime}-{target.precision}-{share}"
    table = setting.table(name, target)
    given = ["--table", str(table)] if table.is_file() else ["--profile-seconds", "40"]
    shape = "x".join(map(str, setting.shape(target.batch)))
    command = [
        *(sys.executable, "-m", "prunekit", "prune", setting.model(name), "--input", shape),
        *("--epochs", "0", "--target", str(target), "--target-latency", f"{share}%", *given),
        *("--measure-seconds", str(setting.seconds(5)), "--overwrite", "-o", str(output)),
        *("--json", "--quiet"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 120, check=False
    )
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-500:]}")
    report = json.loads(done.stdout)
    return {
        "exit_status": done.returncode,
        "asked": float(share) / 100,
        "latency": report["latency"],
        "macs": report["macs"]["pruned"] / report["macs"]["dense"],
        "landing": report["landing"],
        "throttled": report["environment"]["throttled"],
    }


def granularity(setting: Setting, target: Target, seconds: float) -> dict[str, Any]:
    """Half the MACs at widths that are multiples of 1, 8, 16, 32, 64: what each takes."""
    module, graph, example = setting.graph("resnet50", target.batch)
    rows, plans = [], []
    for step in GRANULARITIES:
        plan = _at_macs(graph, 0.5, step)
        plans.append(plan)
        rows.append({"granularity": step, "macs": graph.macs(plan.widths) / graph.macs({})})
    for row, ratio in zip(
        rows, _ratios(setting, module, example, plans, target, seconds), strict=True
    ):
        row["measured"] = ratio
    found = probe(target)
    return {"target": target.describe(), "probe": asdict(found), "sweep": rows}


def _at_macs(graph: pk.ChannelGraph, share: float, step: int) -> ChannelPlan:
    """A random plan whose MACs come nearest to a share."""
    tried = [
        ChannelPlan.random(graph, keep=float(keep), seed=0, granularity=step)
        for keep in np.linspace(0.3, 0.95, 27)
    ]
    whole = graph.macs({})
    return min(tried, key=lambda plan: abs(graph.macs(plan.widths) / whole - share))


def ways(setting: Setting, target: Target, seconds: float) -> dict[str, Any]:
    """Eager, CUDA graph, torch.compile and compile in a graph; caches cold; layouts."""
    if setting.dry:
        cases = {"eager": Torch(graphs=False)}
    else:
        cases = {
            "graph": Torch(),
            "eager": Torch(graphs=False),
            "compiled": Torch(compiled=True, graphs=False),
            "compiled graph": Torch(compiled=True),
            "graph, L2 cold": Torch(cold=True),
            "graph, channels first": Torch(channels_last=False),
        }
    module, _, example = setting.graph("resnet50", target.batch)
    artifact = live_artifact(module, example)
    engines: dict[str, Engine] = {}
    failed = {}
    for name, runtime in cases.items():
        try:
            engines[name] = runtime.load(artifact, target)
        except Exception as error:  # noqa: PERF203 - the others are timed
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    times = _interleaved(engines, setting.seconds(seconds))
    for engine in engines.values():
        engine.close()
    medians = {name: float(np.median(found)) for name, found in times.items()}
    return {"target": target.describe(), "median_ms": medians, "failed": failed}


def _interleaved(engines: dict[str, Engine], seconds: float) -> dict[str, list[float]]:
    names, times = list(engines), {name: [] for name in engines}
    ends = time.monotonic() + seconds
    for order in interleaved_order(len(names), 10_000):
        for index in order:
            times[names[index]] += engines[names[index]].time(6)[1:]
        if time.monotonic() > ends:
            break
    return times


def training_step(setting: Setting, seconds: float) -> dict[str, Any]:
    """What a training step on the slim network takes of a dense one's: IEE's exploitation."""
    batch = 4 if setting.dry else 64
    module, graph, example = setting.graph("resnet50", batch)
    slim = pk.slim(module, _at_macs(graph, 0.3, 1 if setting.dry else 32))
    steps = {
        name: _step(setting, net, example) for name, net in (("dense", module), ("slim", slim))
    }
    for _ in range(3):
        for step in steps.values():
            step()
    ends, times = time.monotonic() + setting.seconds(seconds), {name: [] for name in steps}
    while time.monotonic() < ends or len(times["dense"]) < 3:
        for name, step in steps.items():
            times[name].append(step())
    ratio = paired_ratio(times["dense"], times["slim"])
    share = sum(p.numel() for p in slim.parameters()) / sum(p.numel() for p in module.parameters())
    return {"ratio": asdict(ratio), "macs": 0.3, "params": share, "batch": batch}


def _step(setting: Setting, net: nn.Module, example: torch.Tensor) -> Callable[[], float]:
    device = setting.device
    net, images = net.to(device).train(), example.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = net(images).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def iee(setting: Setting, seconds: float) -> dict[str, Any]:
    """IEE and HALP from scratch on digits at the same asked latency, measured on the GPU."""
    found = {}
    for method in ("iee", "halp"):
        output = setting.folder / f"method-{method}"
        target = setting.target("fp32", 64)
        epochs, nets = ("2", "4") if setting.dry else ("20", "6")
        net = "zoo:resnet20" if setting.dry else "zoo:resnet20_w32"
        command = [
            *(sys.executable, "-m", "prunekit", "prune", net, "--data", "digits"),
            *("--input", "64x3x16x16", "--from-scratch", "--epochs", epochs, "--method", method),
            *("--target", str(target), "--target-latency", "60%", "--profile-nets", nets),
            *(("--granularity", "8") if setting.dry else ()),
            *("--profile-seconds", str(setting.seconds(20)), "--overwrite", "-o", str(output)),
            *("--measure-seconds", str(setting.seconds(3)), "--json", "--quiet"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode not in (0, 1) or not done.stdout.strip():
            raise RuntimeError(f"{method}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
        report = json.loads(done.stdout)
        keys = ("latency", "accuracy", "training_cost")
        found[method] = {key: report[key] for key in keys}
    return found


def sparse(setting: Setting, seconds: float) -> dict[str, Any]:
    """2:4 weights against dense ones, in PyTorch's sparse linear layers."""
    if setting.dry:
        raise SkippedError("2:4 sparse kernels need a GPU")
    device, found = setting.device, {}
    for size in (1024, 4096, 8192):
        linear = nn.Linear(size, size, bias=False).half().to(device)
        plan = pk.sparsify.Static(linear, pattern="2:4", dense=(), start="scores").plan
        linear.requires_grad_(False)
        thin = copy.deepcopy(linear)
        pk.sparsify.semi_structured(thin, plan)
        x = torch.randn(2048, size, device=device, dtype=torch.half)
        apart = float((linear(x) - thin(x)).abs().max() / linear(x).abs().max())
        times: dict[str, list[float]] = {"dense": [], "2:4": []}
        ends = time.monotonic() + seconds / 3
        while time.monotonic() < ends and len(times["dense"]) < 500:
            for name, layer in (("dense", linear), ("2:4", thin)):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                layer(x)
                end.record()
                end.synchronize()
                times[name].append(start.elapsed_time(end))
        ratio = asdict(paired_ratio(times["dense"][10:], times["2:4"][10:]))
        found[str(size)] = {"ratio": ratio, "outputs_apart": apart}
    return found


def engines(setting: Setting, precision: str, batch: int, seconds: float) -> dict[str, Any]:
    """The profile and its error in TensorRT."""
    target = Target("tensorrt", "cuda", precision, batch)
    reason = runtimes.get("tensorrt")().unavailable(target)
    if reason:
        raise SkippedError(reason)
    return prediction(setting, "resnet50", target, seconds, nets=6)


# --- running them -----------------------------------------------------------------------------


def sections(setting: Setting) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """(name, limit in seconds, work), the most valuable first."""

    def predicted(name: str, precision: str, batch: int, seconds: float) -> Any:
        return lambda: prediction(setting, name, setting.target(precision, batch), seconds)

    def pruned(name: str, precision: str, batch: int, share: str) -> Any:
        target = setting.target(precision, batch)
        return lambda: prune(setting, name, target, share, 60)

    yield "environment", 60, environment
    yield "prediction resnet50 fp16 batch 64", 170, predicted("resnet50", "fp16", 64, 60)
    yield "prune resnet50 fp16 batch 64 to 50 %", 120, pruned("resnet50", "fp16", 64, "50")
    yield "prune resnet50 fp16 batch 64 to 30 %", 120, pruned("resnet50", "fp16", 64, "30")
    swept = setting.target("fp16", 64)
    yield "granularity at equal MACs", 120, lambda: granularity(setting, swept, 30)
    yield "prediction resnet50 fp32 batch 8", 130, predicted("resnet50", "fp32", 8, 45)
    live = setting.live("fp16", 8)
    yield "eager, graph, compile", 150, lambda: ways(setting, live, 15)
    yield "training step on the slim network", 60, lambda: training_step(setting, 15)
    for precision in ("fp16", "int8"):
        name = f"tensorrt: prediction resnet50 {precision} batch 8"
        work: Any = lambda p=precision: engines(setting, p, 8, 60)  # noqa: E731
        yield name, 240, work
    yield "prediction mobilenet_v2 fp16 batch 64", 120, predicted("mobilenet_v2", "fp16", 64, 40)
    yield "2:4 sparse linear layers", 40, lambda: sparse(setting, 20)
    yield "iee and halp on digits", 240, lambda: iee(setting, 110)
    if setting.dry:  # all the others are the same
        return
    for model in ("resnet18", "efficientnet_b0", "mobilenet_v2", "resnet50"):
        for precision in ("fp16", "fp32"):
            for batch in (1, 8, 64):
                name = f"prediction {model} {precision} batch {batch}"
                yield name, 100, predicted(model, precision, batch, 30)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A section that lasts longer ends with TimeoutError."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(max(1, round(seconds)))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What a section found, or why it found nothing."""
    began = time.monotonic()
    try:
        with limited(seconds):
            found = {"found": work()}
    except SkippedError as error:
        found = {"skipped": str(error)}
    except TimeoutError as error:
        found = {"failed": str(error)}
    except Exception as error:  # the others go on
        found = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return found | {"seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Run what is not there yet; 0 unless a section failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="prove the script, without a GPU")
    parser.add_argument("--minutes", type=float, default=TOTAL_SECONDS / 60, help="at most (25)")
    parser.add_argument("--only", default="", help="sections whose names hold this text")
    parser.add_argument("--again", action="store_true", help="do all sections again")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    given = parser.parse_args()
    try:
        name = "dry" if given.dry else _slug(runtime_name())
    except PrunekitError as error:
        print(f"{error}\n--dry proves the script without one", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"gpu_{name}.json"
    folder = given.output / f"gpu_{name}_work"
    folder.mkdir(exist_ok=True)
    result = json.loads(path.read_text()) if path.is_file() and not given.again else {}
    setting, ends = Setting(given.dry, folder), time.monotonic() + 60 * given.minutes
    known = set()
    for title, limit, work in sections(setting):
        if given.only not in title or title in known:
            continue
        known.add(title)
        left = ends - time.monotonic()
        if "found" in result.get(title, {}):
            print(f"{title}: there already", flush=True)
            continue
        if left < 5:
            print(f"{title}: no time left; the same command goes on", flush=True)
            continue
        result[title] = outcome(work, min(limit, left))
        path.write_text(json.dumps(result, indent=1, default=str) + "\n")
        kind = next(iter(result[title]))
        text = "" if kind == "found" else f": {result[title][kind]}"
        print(f"{title}: {kind} in {result[title]['seconds']} s{text}", flush=True)
    print(f"wrote {path}")
    return 1 if any("failed" in part for part in result.values()) else 0


def runtime_name() -> str:
    """The GPU's name; an error says what is missing."""
    target = best_gpu()
    return runtime_for(target).environment(target).device_name


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


if __name__ == "__main__":
    sys.exit(main())
