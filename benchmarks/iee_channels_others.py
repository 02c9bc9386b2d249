"""What ``iee_channels.py`` compares with, outside the command line: controls and a rival."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import glyphs
import numpy as np
import torch
from iee_channels import MEASURE_SECONDS, Run, done
from torch import nn

import prunekit as pk
from prunekit.allocation import uniform
from prunekit.allocation.costs import LatencyCost
from prunekit.exporting import export
from prunekit.networks.saved import open_model, save_weights
from prunekit.pipeline.job import example_input
from prunekit.pipeline.table import make_table
from prunekit.profiling import HarvestPlan
from prunekit.runtimes import runtime_for
from prunekit.train import Data, TrainConfig, evaluate, fit, load_data, loader


def carry_out(run: Run, case: Any, table_of: Any, dense_weights: Any) -> dict[str, Any]:
    """One run; ``run.method`` says which."""
    torch.manual_seed(run.seed)
    data = data_of(case)
    model = network(case, data).module
    if run.method == "table":
        graph = pk.trace(model.eval(), example_input(case.input))
        target = target_of(case)
        path = table_of(run.case)
        journal = path.with_suffix(".jsonl")
        make_table(
            *(model, graph, example_input(case.input), target, path),
            journal=journal,
            plan=HarvestPlan(4, max_seconds=10) if run.case == "subset" else HarvestPlan(12),
            granularity=None,
            name=case.model,
            resume=False,
        )
        return {"mape": pk.LatencyTable.load(path).calibration.mape}
    if run.method == "dense":
        found = train(model, data, case, case.lr)
        save_weights(model, dense_weights(run))
        return found | scores(model, case) | {"relative_flops": 1.0}
    if run.method.startswith("uniform"):
        return uniform_net(run, case, model, data, table_of(run.case))
    if run.method == "halp-widths":
        return widths_of_halp(run, case, model, data)
    if run.method.startswith("torch-pruning"):
        from torch_pruning_baseline import rival

        return rival(run, case, model, data, dense_weights(run))
    raise SystemExit(f"unknown method {run.method}")


def target_of(case: Any) -> pk.Target:
    """Where latency is measured: on one thread, at the batch of the case's input."""
    return pk.Target.parse(case.target, batch=int(case.input.split("x")[0]), threads=1)


def network(case: Any, data: Data) -> Any:
    """The case's network, fresh from torch's generator."""
    classes, channels = data.num_classes, data.input_shape[0]
    return open_model(case.model, num_classes=classes, in_channels=channels, pretrained=False)


def data_of(case: Any) -> Data:
    """Training and validation images."""
    _, channels, height, width = (int(n) for n in case.input.split("x"))
    return load_data(case.data, (channels, height, width))


def train(model: nn.Module, data: Data, case: Any, lr: float, epochs: float = 1) -> dict[str, Any]:
    """One dense training run's epochs, or a multiple."""
    config = TrainConfig(
        epochs=round(epochs * case.epochs),
        batch_size=case.batch_size,
        lr=lr,
        mixed_precision=case.precision,
        seed=0,
    )
    found = fit(model, data, config)
    return {"val": found.accuracy, "seconds": found.seconds}


def scores(model: nn.Module, case: Any) -> dict[str, float]:
    """Accuracy on the test images."""
    return {"test": evaluate(model.eval(), test_set(case))}


@cache
def test_set(case: Any) -> Any:
    """Images that chose nothing; digits have no third part, so there it is the validation's."""
    if case.data == "digits":
        return data_of(case).val
    size = int(case.input.split("x")[-1])
    return glyphs.dataset("test", size, data_of(case).num_classes)


def test_accuracy(case: Any, path: Path) -> float:
    """Top-1 of an ONNX file."""
    target = pk.Target.parse("onnxruntime:cpu", threads=1)
    engine = runtime_for(target).load(pk.Artifact.of_file(path), target)
    right = seen = 0
    for images, labels in loader(test_set(case), 256):
        (logits, *_) = engine.run({"input": images.numpy()})
        right += int((np.asarray(logits).argmax(1) == labels.numpy()).sum())
        seen += len(labels)
    engine.close()
    return right / seen


def measured(model: nn.Module, small: nn.Module, case: Any, folder: Path) -> Any:
    """The ratio of ``small`` to ``model``, which ``folder`` keeps; both as ONNX, interleaved."""
    example = example_input(case.input)
    kept = folder / "dense.onnx"
    dense = pk.Artifact.of_file(kept) if kept.is_file() else export(model.eval(), example, kept)
    pair = [dense, export(small.eval(), example, folder / "small.onnx")]
    found = pk.bench(pair, target_of(case), max_seconds=MEASURE_SECONDS, precision_goal=0.005)
    return found.ratios[0]


def uniform_net(run: Run, case: Any, model: nn.Module, data: Data, table: Path) -> dict[str, Any]:
    """The narrow net of the same shape, trained from scratch: as long, or at twice the epochs."""
    import tempfile

    graph = pk.trace(model.eval(), example_input(case.input))
    costs = LatencyCost(pk.LatencyTable.load(table))
    wanted = float(run.target.rstrip("%")) / 100
    low, high, found = 0.0, min(1.0, 2 * wanted), None
    asked = wanted
    block = costs.table.granularity
    seen: set[tuple[int, ...]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(8):
            plan = uniform(graph, costs, asked, block)
            widths = tuple(plan.widths.values())
            if widths not in seen:
                seen.add(widths)
                timed = measured(model, pk.slim(model, plan), case, Path(folder))
                met = timed.ratio <= wanted * 1.005
                if met and (found is None or timed.ratio > found[1].ratio):
                    found = plan, timed
            low, high = (asked, high) if met else (low, asked)
            asked = (low + high) / 2
    if found is None:
        raise SystemExit("no uniform net is fast enough")
    plan, ratio = found
    times = run.options.get("times", 2 if run.method == "uniform-long" else 1)
    timed = {"ratio": ratio.ratio, "ratio_ci": [ratio.low, ratio.high]}
    return timed | from_scratch(run, case, graph, data, plan, times)


def from_scratch(
    run: Run, case: Any, graph: pk.ChannelGraph, data: Data, plan: pk.ChannelPlan, times: int = 1
) -> dict[str, Any]:
    """Train ``plan``'s widths from random weights."""
    torch.manual_seed(run.seed + 100)
    small = pk.slim(network(case, data).module, plan)
    started = time.time()
    result = train(small, data, case, case.lr, times)
    macs = graph.macs(plan.widths) / graph.macs({})
    return {
        **result,
        **scores(small, case),
        "relative_flops": times * macs,
        "macs_ratio": macs,
        "widths": plan.widths,
        "took": time.time() - started,
    }


def widths_of_halp(run: Run, case: Any, model: nn.Module, data: Data) -> dict[str, Any]:
    """The widths that HALP ended with, trained as long as the dense network."""
    (halp,) = (
        row
        for row in done().values()
        if all(row[k] == getattr(run, k) for k in ("case", "seed", "target", "criterion"))
        and row["method"] == "halp"
    )
    graph = pk.trace(model.eval(), example_input(case.input))
    plan = pk.ChannelPlan.from_widths(graph, halp["widths"])
    timed = {key: halp[key] for key in ("ratio", "ratio_ci")}
    return timed | from_scratch(run, case, graph, data, plan)
