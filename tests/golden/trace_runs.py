"""Runs everything whose numbers are recorded: `python trace_runs.py FILE`, begun by test_traces.

Only public names and the command line are used. Every scenario runs in a process of its own, forked
from one that has imported all, so that none depends on another. What depends on time is held still:
clocks stand, and no run counts as interrupted, so that the noise of the fake target, a function of
an ONNX file and of how often it was loaded, is always the same. The exporter writes paths of source
files into ONNX files; they are left out of what that noise is drawn from.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

time.perf_counter = time.monotonic = lambda: 1000.0  # before anything takes them by name
_usage = resource.getrusage


_first = _usage(resource.RUSAGE_SELF)
_calm = SimpleNamespace(
    **{name: getattr(_first, name) for name in dir(_first) if name.startswith("ru_")}
    | {"ru_nivcsw": 0}
)
resource.getrusage = lambda who: _calm

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import prunekit as pk  # noqa: E402
from prunekit import zoo  # noqa: E402
from prunekit.cli.main import run as command  # noqa: E402

torch.set_num_threads(1)
torch.backends.mkldnn.set_flags(False)  # kernels that depend on the processor
torch.backends.nnpack.set_flags(False)  # and on the sizes of its caches

ON_FAKE = ("--target", "fake", "-q")
SHAPE = ("--input", "1x3x8x8")
ZOO = ("zoo:resnet8", *SHAPE)
OWN = ("net.py:net", *SHAPE)
NET = """
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.block = Block(32)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.block(F.relu(self.bn(self.stem(x))))
        return self.fc(F.relu(self.down(x)).mean((2, 3)))


def net(num_classes=10):
    return Net(num_classes)
"""
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "onnx", "onnxscript", "scikit-learn")
SCENARIOS: dict[str, Callable[[], Any]] = {}


def scenario(function: Callable[[], Any]) -> Callable[[], Any]:
    SCENARIOS[function.__name__] = function
    return function


# --- values as text ---------------------------------------------------------------------------


def exact(value: Any) -> Any:
    """Numbers with all their bits: floats in hexadecimal, arrays as checksum and first values."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        return {
            "shape": list(data.shape),
            "sha256": hashlib.sha256(data.tobytes()).hexdigest()[:16],
            "first": [exact(part) for part in data.reshape(-1)[:3].tolist()],
        }
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): exact(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [exact(part) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: exact(getattr(value, name)) for name in value.__dataclass_fields__}
    raise TypeError(type(value))


def checksum(parts: Any) -> str:
    """Of anything that :func:`exact` takes."""
    return hashlib.sha256(json.dumps(exact(parts)).encode()).hexdigest()[:16]


def state(module: nn.Module) -> dict[str, Any]:
    """A network's tensors: one checksum, and the first values of a few."""
    held = module.state_dict()
    floating = [name for name, tensor in held.items() if tensor.is_floating_point()]
    few = [floating[0], floating[len(floating) // 2], floating[-1]]
    return {
        "sha256": checksum(held),
        "tensors": len(held),
        "numbers": sum(tensor.numel() for tensor in held.values()),
        **{name: exact(held[name])["first"] for name in few},
    }


def of_plan(plan: pk.ChannelPlan) -> dict[str, Any]:
    """What is kept, and the cuts of all modules as a checksum."""
    return {
        "fingerprint": plan.fingerprint,
        "keep": {group: list(kept) for group, kept in plan.keep.items()},
        "removed": list(plan.removed),
        "cuts": checksum(plan.cuts),
        "predicted": exact(plan.predicted),
    }


def of_allocation(found: Any) -> dict[str, Any]:
    """Widths, cost and value of an allocation."""
    facts = ("value", "cost", "dense_cost", "limit", "gap", "unit", "status", "solver")
    return {
        "widths": found.widths,
        **{name: exact(getattr(found, name)) for name in facts},
        "keep": checksum({group: list(kept) for group, kept in found.plan.keep.items()}),
    }


def of_table(table: pk.LatencyTable) -> dict[str, Any]:
    """All but the environment."""
    protocol = exact(table.protocol)
    return {
        "target": table.target.describe(),
        "protocol": protocol,
        "granularity": table.granularity,
        "models": list(table.models),
        "entries": {
            str(entry.shape): [
                " ".join(map(str, (s.net, s.cin, s.cout, s.us, s.spread_us, s.runs, s.calls)))
                for s in entry.samples
            ]
            for entry in table.entries
        },
        "networks": [exact(network) for network in table.networks],
        "calibration": exact(table.calibration),
        "probe": None if table.probe is None else checksum(table.probe),
    }


def of_graph(graph: pk.ChannelGraph) -> dict[str, Any]:
    """Counts, a checksum of each part, and what a reader compares first."""
    groups = [
        {
            **{n: getattr(g, n) for n in ("id", "size", "granularity", "min_width", "prunable")},
            "reason": g.reason,
            "members": [[m.module, str(m.role), m.index.tolist()] for m in g.members],
        }
        for g in graph.groups
    ]
    return {
        "fingerprint": graph.fingerprint,
        "inputs": [list(shape) for shape in graph.input_shapes],
        "groups": len(groups),
        "prunable": sum(g.prunable for g in graph.groups),
        "layers": len(graph.layers),
        "buffers": len(graph.buffers),
        "macs": graph.macs({}),
        "memory": graph.memory({}),
        "peak": exact(graph.peak({})),
        "prunable_macs_share": exact(graph.prunable_macs_share()),
        "removable": list(graph.removable),
        "droppable": len(graph.droppable),
        "notes": list(graph.notes),
        "groups_sha256": checksum(groups),
        "layers_sha256": checksum(graph.layers),
        "buffers_sha256": checksum(graph.buffers),
        "sizes": {g.id: g.size for g in graph.groups if g.prunable},
    }


def of_onnx(path: Path) -> str:
    """A checksum of an ONNX file without what it says of the code that it was made from."""
    proto = onnx.load(path)
    marked = [(p.key, p.value) for p in proto.metadata_props]
    _forget(proto.graph)
    for function in proto.functions:
        _forget(function)
    del proto.metadata_props[:]
    proto.doc_string = ""
    data = proto.SerializeToString(deterministic=True)
    return hashlib.sha256(data + repr(sorted(marked)).encode()).hexdigest()


def _forget(graph: Any) -> None:
    for kind in ("node", "value_info", "input", "output", "initializer"):
        for part in getattr(graph, kind, ()):
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.doc_string = ""
    if hasattr(graph, "metadata_props"):
        del graph.metadata_props[:]
    graph.doc_string = ""


_of_file = pk.Artifact.of_file.__func__


def _without_paths(cls: Any, path: Any, **facts: Any) -> Any:
    """`Artifact.of_file`, whose checksum is that of the network alone."""
    found = _of_file(cls, path, **facts)
    if found.format == "onnx":
        object.__setattr__(found, "sha256", of_onnx(Path(path)))
    return found


pk.Artifact.of_file = classmethod(_without_paths)


# --- what is trained --------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Small(nn.Module):
    """A stem, two residual blocks, a depthwise convolution, a classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.fc1 = nn.Linear(32, 24)
        self.fc2 = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.depthwise(self.blocks(F.relu(self.stem(x))))))
        x = F.relu(self.wide(x)).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


EXAMPLE = torch.zeros(1, 4, 6, 6)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
}


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with the label's mean: a function of the step."""
    generator = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(0, 4, (size,), generator=generator)
    images = torch.randn(size, 4, 6, 6, generator=generator)
    return images + F.one_hot(labels, 4)[:, :, None, None], labels


def loss_of(model: nn.Module, part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(part[0]), part[1])


def pretrained(steps: int = 12) -> Small:
    """A network that has been trained a little, densely."""
    model = Small().train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch(500 + step)).backward()
        optimizer.step()
    return model


def one_table(model: nn.Module, graph: pk.ChannelGraph) -> pk.LatencyTable:
    target = pk.Target.parse("fake", batch=32)  # so that its overhead is a small part
    return pk.harvest(model.eval(), graph, EXAMPLE, target, granularity=4)


# --- the library ------------------------------------------------------------------------------


@scenario
def graphs() -> Any:
    """Tracing of a handful of networks."""
    import timm
    import torchvision

    made: dict[str, tuple[nn.Module, int]] = {n: (zoo.build(n), 16) for n in sorted(zoo.ZOO)}
    for name, more in (
        ("resnet18", {}),
        ("mobilenet_v3_small", {}),
        ("vit_b_16", {"image_size": 32}),
    ):
        model = getattr(torchvision.models, name)(weights=None, **more)
        made[f"torchvision {name}"] = model, 32
    made["timm convnext_atto"] = timm.create_model("convnext_atto"), 32
    found = {}
    for name, (model, size) in made.items():
        found[name] = of_graph(pk.trace(model.eval(), torch.zeros(1, 3, size, size)))
    small = torchvision.models.VisionTransformer(32, 16, 2, 4, 64, 128).eval()
    found["two blocks of a transformer, heads by width"] = of_graph(
        pk.trace(small, torch.zeros(1, 3, 32, 32), heads="width")
    )
    found["a network of the loops"] = of_graph(pk.trace(Small().eval(), EXAMPLE))
    return found


@scenario
def scores() -> Any:
    """Every criterion on one trained network."""
    model = pretrained().eval()
    graph = pk.trace(model, EXAMPLE)
    batches = [batch(step) for step in range(3)]
    found = {}
    for criterion in (
        *(pk.Taylor(), pk.TaylorWeight(), pk.Magnitude(), pk.FPGM(), pk.LAMP(), pk.BNScale()),
        *(pk.Random(), pk.Random(seed=5), pk.Magnitude(normalize="mean")),
    ):
        scored = pk.score(model, graph, criterion, loss_of, batches)
        found[repr(criterion)] = {g: exact(v) for g, v in scored.by_group.items()}
    return found


@scenario
def table() -> Any:
    """`harvest` on the fake target."""
    model = Small()
    graph = pk.trace(model.eval(), EXAMPLE)
    made = one_table(model, graph)
    predicted = pk.predict(graph, pk.ChannelPlan.random(graph, keep=0.7), made)
    return {"table": of_table(made), "predicted": exact(predicted)}


@scenario
def allocations() -> Any:
    """Every solver and every kind of budget, on one table and one scoring."""
    model = pretrained().eval()
    graph = pk.trace(model, EXAMPLE)
    prices = one_table(model, graph)
    scored = pk.score(model, graph, pk.Taylor(), loss_of, [batch(step) for step in range(3)])
    entries = importlib.metadata.entry_points(group="prunekit.allocators")
    solvers = {entry.name: entry.load() for entry in entries}
    found = {}
    for name in ("joint", "knapsack", "milp", "greedy", "uniform"):
        for text in ("50%", "75%", "macs=40%", "params=50%"):
            budget = pk.Budget.parse(text)
            made = pk.allocate(graph, scored, prices, budget, solvers[name]())
            found[f"{name} {text}"] = of_allocation(made)
    group = next(g.id for g in graph.groups if g.prunable)
    half = pk.Budget.parse("60%")
    more: dict[str, dict[str, Any]] = {
        "granularity": {"granularity": 8},
        "at most": {"at_most": {group: 8}},
        "at least": {"at_least": {group: 12}},
        "locked": {"locked": {group: (1, 3, 5)}},
        "limits": {"limits": (pk.Budget.parse("params=40%"), pk.Budget.parse("macs=45%"))},
        "limit of memory": {"limits": (pk.Budget.parse("memory=70%"),)},
        "depth": {"depth": True},
    }
    for name, settings in more.items():
        found[f"joint 60% {name}"] = of_allocation(
            pk.allocate(graph, scored, prices, half, **settings)
        )
    of_memory = pk.Budget.parse("memory=60%")
    found["joint memory=60%"] = of_allocation(pk.allocate(graph, scored, None, of_memory))
    chosen = pk.allocate(graph, scored, prices, half).plan
    found["explained"] = exact(pk.explain(graph, chosen, prices, scored))
    found["plan"] = of_plan(chosen)
    found["random plan"] = of_plan(pk.ChannelPlan.random(graph, keep=0.5, seed=3))
    return found


@scenario
def networks() -> Any:
    """Slim and masked networks: values, outputs, and what is saved."""
    model = pretrained().eval()
    graph = pk.trace(model, EXAMPLE)
    plan = pk.ChannelPlan.random(graph, keep=0.6, seed=1)
    small = pk.slim(model, plan)
    masked = pk.mask_(pretrained().eval(), plan)
    images, _ = batch(0)
    with torch.no_grad():
        outputs = {"dense": model(images), "slim": small(images), "masked": masked(images)}
    torch.manual_seed(0)
    net = zoo.build("resnet8").eval()
    plan_of_net = pk.ChannelPlan.random(pk.trace(net, torch.zeros(1, 3, 8, 8)), keep=0.5, seed=2)
    pk.save("saved", pk.slim(net, plan_of_net), plan_of_net, base="zoo:resnet8")
    return {
        "plan": of_plan(plan),
        "slim": state(small),
        "masked": state(masked),
        "outputs": exact(outputs),
        "loaded": state(pk.load("saved")),
        "saved": sorted(path.name for path in Path("saved").iterdir()),
        "onnx": of_onnx(Path(pk.export(small, EXAMPLE, "small.onnx").path)),
    }


def _iee(
    model: nn.Module,
    optimizer: str,
    budget: str = "macs=50%",
    criterion: Any = None,
    prices: Any = None,
    **options: Any,
) -> Any:
    graph = pk.trace(model.eval(), EXAMPLE)
    if prices is not None:
        prices = prices(model, graph)
    model.train()
    steps = options.pop("steps", 30)
    optimized = OPTIMIZERS[optimizer](model.parameters())
    schedule = pk.IEESchedule(steps, **{"cycles": 3, **options})
    iee = pk.IEE(model, graph, prices, pk.Budget.parse(budget), criterion, schedule)
    losses, stages, widths = [], [], []
    for step in range(steps):
        loss = loss_of(iee.model, batch(step))
        loss.backward()
        iee.step(optimized)
        losses.append(float(loss.detach()).hex())
        stages.append(iee.stage)
        widths.append(checksum(iee.plan.widths))
    return {
        "losses": losses,
        "stages": stages,
        "widths": widths,
        "work": exact(iee.work),
        "history": exact(iee.history),
        "plan": of_plan(iee.plan),
        "state": state(iee.model),
    }


@scenario
def iee_of_channels() -> Any:
    """IEE for channels in a loop of one's own."""
    return {
        "from scratch, sgd": _iee(Small(), "sgd"),
        "from scratch, adamw": _iee(Small(1), "adamw"),
        "of a trained network": _iee(pretrained(), "sgd", start="dense"),
        "within a latency": _iee(Small(2), "sgd", "latency=60%", prices=one_table),
        "ranked locally by magnitude": _iee(
            Small(), "sgd", criterion=pk.Magnitude(), ranking="local"
        ),
        "most recently used": _iee(Small(), "adamw", source="mru", grow="mru", norm="running"),
    }


def _sparse(method: str, model: nn.Module, optimizer: str = "sgd", **options: Any) -> Any:
    names = set(pk.sparsify.SparsitySchedule.__dataclass_fields__)
    own = {key: options.pop(key) for key in {*options} & names}
    steps = 24
    short = {"every": 3, "until": 0.9}
    if method == "iee":
        short |= {"improve": 2, "explore": 3}
    model.train()
    optimized = OPTIMIZERS[optimizer](model.parameters())
    sparse = pk.sparsify.METHODS[method](
        model,
        options.pop("sparsity", 0.8),
        pk.sparsify.SparsitySchedule(steps, **{**short, **own}),
        example=EXAMPLE,
        **options,
    )
    losses, stages, masks = [], [], []
    for step in range(steps):
        loss = loss_of(model, batch(step))
        loss.backward()
        sparse.step(optimized)
        losses.append(float(loss.detach()).hex())
        stages.append(sparse.stage)
        masks.append(checksum(sparse.masks))
    return {
        "losses": losses,
        "stages": stages,
        "masks": masks,
        "kept": {layer.name: layer.kept for layer in sparse.plan.layers},
        "plan": exact(sparse.plan),
        "work": exact(sparse.work),
        "survival": exact(sparse.survival()),
        "history": exact(sparse.history),
        "state": state(model),
    }


@scenario
def sparse_weights() -> Any:
    """Every method of sparse training in a loop of one's own."""
    found = {method: _sparse(method, Small()) for method in sorted(pk.sparsify.METHODS)}
    for method in ("iee", "rigl", "static"):
        found[f"{method} 2:4"] = _sparse(
            method, Small(), sparsity=None, pattern="2:4", dense=("first", "depthwise")
        )
    found["iee of a trained network"] = _sparse("iee", pretrained(), start="scores")
    found["iee, adamw"] = _sparse("iee", Small(), "adamw")
    found["iee, most recently used"] = _sparse("iee", Small(), source="mru", grow="mru")
    found["rigl, ranked globally"] = _sparse("rigl", Small(), ranking="global")
    found["set, uniform, taylor"] = _sparse(
        "set", Small(), distribution="uniform", criterion="taylor"
    )
    found["gmp, all layers sparse"] = _sparse("gmp", Small(), dense=None)
    return found


# --- the command line -------------------------------------------------------------------------

_replaced: list[str] = []
_replace = os.replace


def _noted_replace(source: Any, target: Any, **more: Any) -> None:
    """`os.replace`, by which every finished file gets its name."""
    _replace(source, target, **more)
    _replaced.append(str(target))
    if Path(target).name == "landing.json":
        _landings.append(json.loads(Path(target).read_text()))


_landings: list[Any] = []
os.replace = _noted_replace

TIMED = {"seconds", "dense_seconds", "created", "apart"}
"""Facts that are not recorded: times of day and of training, and how far ONNX Runtime is off."""
PLACES = {"environment", "versions", "digests", "sha256", "weights_sha256", "origin"}
"""Facts of the machine, and checksums of files that hold such facts."""


def bare(value: Any) -> Any:
    """What a file says, without times and places."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if k not in TIMED | PLACES}
    return [bare(part) for part in value] if isinstance(value, list) else value


def say(*arguments: object) -> dict[str, Any]:
    """Run a command in this process: its exit status, and what it said where that is JSON."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command([str(argument) for argument in arguments])
    text = out.getvalue()
    found: dict[str, Any] = {"status": status}
    if text.startswith("{"):
        found["said"] = bare(json.loads(text))
    if err.getvalue():
        found["told"] = re.sub(r"line \d+|:\d+", "", err.getvalue()).splitlines()
    return found


def shape_of(value: Any) -> Any:
    """Names and types alone, of what is another number each time."""
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return type(value).__name__


def folder(run: str, model: tuple[str, ...] = OWN) -> dict[str, Any]:
    """What a run leaves: its files, and what is in them."""
    path = Path(run)
    report = json.loads((path / "report.json").read_text())
    found: dict[str, Any] = {
        "files": sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()),
        "written": sorted({str(Path(p)) for p in _replaced if p.startswith(f"{run}/")}),
        "heads": {},
        "report": bare(exact(report)),
        "log": [bare(exact(json.loads(row))) for row in _lines(path / "log.jsonl")],
        "config": (path / "config.toml").read_text().splitlines(),
        "landing": bare(exact(_landings[-1])) if _landings else None,
        "model.onnx": of_onnx(path / "model.onnx"),
        "dense.onnx": of_onnx(path / "dense.onnx"),
        "loaded": state(pk.load(run, None if model[0] == ZOO[0] else model[0])),
    }
    for file in sorted(path.glob("*.json")):
        content = json.loads(file.read_text())
        found["heads"][file.name] = [content["prunekit"], content["version"], [*content]]
    for name in ("plan.json", "sparsity.json"):
        if (path / name).is_file():
            found[name] = bare(exact(json.loads((path / name).read_text())))
    found.get("plan.json", {}).pop("cuts", None)
    if (path / "table.json").is_file():
        found["table"] = of_table(pk.LatencyTable.load(path / "table.json"))
    for name in ("model.safetensors", "dense.safetensors"):
        if (path / name).is_file():
            data = (path / name).read_bytes()
            found[name] = hashlib.sha256(data).hexdigest()[:16]
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _train(seed: int, *more: object) -> tuple[object, ...]:
    return ("--data", "digits", "--epochs", "2", "--batch-size", "256", "--seed", seed, *more)


def _prune(seed: int, *more: object, model: tuple[str, ...] = OWN) -> dict[str, Any]:
    nets = () if "--table" in more else ("--profile-nets", "4")
    return say("prune", *model, *ON_FAKE, *nets, "--seed", seed, "-o", "run", *more)


def _dense_weights() -> None:
    """Weights to begin from."""
    from net import net
    from safetensors.torch import save_file

    torch.manual_seed(7)
    save_file(net().state_dict(), "dense.safetensors")


@scenario
def prune_oneshot() -> Any:
    """No data: magnitude, one cut, with a profile of its own."""
    return {**_prune(1, "--epochs", 0, "--target-latency", "60%"), **folder("run")}


@scenario
def prune_oneshot_trained() -> Any:
    """One-shot scores by Taylor on given weights, fine-tuned; blocks may go, two limits."""
    _dense_weights()
    limits = ("--limit", "params=70%", "--limit", "memory=90%", "--depth")
    found = _prune(
        2,
        *_train(2, "--method", "oneshot", "--score-batches", 2, "--target-latency", "55%"),
        *("--weights", "dense.safetensors", *limits, "--ema", "0.9", "--distill", "0.5"),
    )
    return {**found, **folder("run")}


@scenario
def prune_halp() -> Any:
    """From given weights."""
    _dense_weights()
    found = _prune(
        3,
        *_train(3, "--method", "halp", "--pruning-steps", 3, "--target-latency", "50%"),
        *("--weights", "dense.safetensors"),
    )
    return {**found, **folder("run")}


@scenario
def prune_halp_from_scratch() -> Any:
    """The default method; the dense network's training first; an absolute latency; AdamW."""
    found = _prune(
        4,
        *_train(4, "--from-scratch", "--dense-epochs", 1, "--optimizer", "adamw"),
        *("--target-latency", "0.05ms", "--solver", "knapsack", "--label-smoothing", "0.1"),
        model=ZOO,
    )
    return {**found, **folder("run", ZOO)}


@scenario
def prune_iee_from_scratch() -> Any:
    """IEE from random weights."""
    found = _prune(
        5,
        *_train(
            5, "--method", "iee", "--from-scratch", "--target-latency", "50%", "--iee", "cycles=2"
        ),
    )
    return {**found, **folder("run")}


@scenario
def prune_iee_trained() -> Any:
    """IEE of given weights."""
    _dense_weights()
    found = _prune(
        6,
        *_train(6, "--method", "iee", "--weights", "dense.safetensors", "--target-latency", "60%"),
        *("--iee", "cycles=2", "--clip-norm", "1"),
    )
    return {**found, **folder("run")}


def _sparsify(
    seed: int, method: str, *more: object, model: tuple[str, ...] = OWN
) -> dict[str, Any]:
    how = (*ON_FAKE, *_train(seed), "--method", method, *more)
    return {**say("sparsify", *model, *how, "-o", "run"), **folder("run", model)}


@scenario
def sparsify_iee() -> Any:
    options = ("--option", "every=2", "--option", "explore=2")
    return _sparsify(11, "iee", "--from-scratch", *options, model=ZOO)


@scenario
def sparsify_rigl() -> Any:
    return _sparsify(12, "rigl", "--from-scratch", "--option", "every=2", "--ranking", "global")


@scenario
def sparsify_set() -> Any:
    _dense_weights()
    return _sparsify(13, "set", "--weights", "dense.safetensors", "--option", "every=2")


@scenario
def sparsify_gmp() -> Any:
    _dense_weights()
    return _sparsify(14, "gmp", "--weights", "dense.safetensors", "--option", "every=2")


@scenario
def sparsify_static() -> Any:
    return _sparsify(15, "static", "--from-scratch", "--sparsity", "70%", "--dense", "none")


@scenario
def sparsify_2_to_4() -> Any:
    _dense_weights()
    return _sparsify(
        16, "iee", "--weights", "dense.safetensors", "--pattern", "2:4", "--option", "every=2"
    )


@scenario
def tables() -> Any:
    """`profile` by every source, and what is done with tables."""
    common = (*OWN, *ON_FAKE)
    short = ("--nets", "4", "--rounds", "3")
    found: dict[str, Any] = {
        "harvest": say("profile", *common, "--nets", "7", "--rounds", 2, "-o", "a.json", "--json"),
        "differences": say(
            *("profile", *common, "--source", "differences", "--rounds", "2", "-o", "b.json")
        ),
        "transfer": say("profile", *common, *short, "--transfer", "a.json", "-o", "c.json"),
        "shard 1": say("profile", *common, *short, "--shard", "1/2", "-o", "d.json"),
        "shard 2": say("profile", *common, *short, "--shard", "2/2", "-o", "d.json"),
        "merge": say("table", "merge", "d.1of2.json", "d.2of2.json", "-o", "e.json"),
        "show": say("table", "show", "a.json", "--json"),
        "diff": say("table", "diff", "a.json", "b.json", "--json"),
        "list": shape_of(say("table", "list", "--json")),
    }
    for name in ("a", "b", "c", "d.1of2", "d.2of2", "e"):
        found[f"{name}.json"] = of_table(pk.LatencyTable.load(f"{name}.json"))
    found["files"] = sorted(path.name for path in Path().iterdir())
    return exact(found)


@scenario
def commands() -> Any:
    """What the other commands say in JSON."""
    _dense_weights()
    own = ("--table", "table.json")
    found: dict[str, Any] = {
        "profile": say("profile", *OWN, *ON_FAKE, "--nets", "4", "--rounds", "2", "-o", own[1]),
        "inspect": say("inspect", *OWN, "--json", "-q"),
        "sweep": say(
            *("sweep", *OWN, *ON_FAKE, *own, "--points", "4", "-o", "sweep.json", "--json"),
            *("--weights", "dense.safetensors"),
        ),
        "prune": say(
            *("prune", *OWN, *ON_FAKE, *own, "--epochs", "0", "-o", "run", "--json"),
            *("--target-latency", "2x", "--weights", "dense.safetensors"),
        ),
    }
    found["export"] = say("export", "run", "-o", "other.onnx", "--json", "-q")
    found["bench"] = say("bench", "run/dense.onnx", "run/model.onnx", *ON_FAKE, "--json")
    found["check"] = say(
        "check", "run/model.onnx", "--baseline", "run/dense.onnx", *ON_FAKE, "--json"
    )
    found["report"] = say("report", "run", "--json")
    found["targets"] = shape_of(say("targets", "--json"))
    sweep = json.loads(Path("sweep.json").read_text())
    found["sweep.json"] = [sweep["prunekit"], sweep["version"], [*sweep]]
    found["no such model"] = say("inspect", "zoo:none", "--json")
    return exact(found)


# --- all of them ------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of all that computes."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "libc": " ".join(platform.libc_ver()),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _in_a_process(name: str, home: Path) -> int:
    """Begin a scenario; its number. What it found is in NAME.json, what went wrong in NAME.err."""
    number = os.fork()
    if number:
        return number
    status = 1
    # torch makes its pool anew after a fork, which two threads must not do at once
    torch.set_num_threads(1)
    try:
        work = home / f"{name}.work"
        work.mkdir()
        os.chdir(work)
        Path("net.py").write_text(NET)
        sys.path.insert(0, str(work))
        began = _usage(resource.RUSAGE_SELF).ru_utime
        found = SCENARIOS[name]()
        took = _usage(resource.RUSAGE_SELF).ru_utime - began
        (home / f"{name}.json").write_text(json.dumps(found))
        (home / f"{name}.seconds").write_text(f"{took:.1f}")
        status = 0
    except BaseException:
        (home / f"{name}.err").write_text(traceback.format_exc())
    os._exit(status)


def main(output: str, *only: str) -> None:
    """Run all scenarios, two at a time, and write what they found."""
    import accelerate  # noqa: F401 - before the forks, once for all
    import onnxruntime  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.datasets  # noqa: F401

    names = [name for name in SCENARIOS if not only or name in only]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pk.export(Small().eval(), EXAMPLE, home / "warm.onnx")  # the exporter's translations
        gc.set_threshold(100_000, 20, 20)  # a quarter of an export's time
        gc.freeze()
        waiting, working, errors = list(names), {}, []
        while waiting or working:
            while waiting and len(working) < min(2, os.cpu_count() or 1):
                name = waiting.pop(0)
                working[_in_a_process(name, home)] = name
            number, status = os.wait()
            name = working.pop(number)
            if status:
                error = home / f"{name}.err"
                told = error.read_text() if error.is_file() else f"ended with {status}\n"
                errors.append(f"{name}: {told}")
        if errors:
            sys.exit("\n".join(errors))
        found = {name: json.loads((home / f"{name}.json").read_text()) for name in names}
        took = {name: float((home / f"{name}.seconds").read_text()) for name in names}
    result = {"versions": versions(), "seconds": took, "found": found}
    Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
