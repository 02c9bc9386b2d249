"""One training of the comparison: data, network, method, result."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sparse_training.plan import NAME, Case, Run

HERE = Path(__file__).parents[1]


CACHE = HERE / ".cache" / NAME
"""Dense weights, which 2:4 patterns start from."""


def datasets(case: Case) -> tuple[Any, Any]:
    """Data with the validation images, and with the test images."""
    from prunekit.train import load_data

    if case.data == "digits":
        data = load_data("digits", (3, case.size, case.size), 0)
        return data, data
    from benchmarks import glyphs

    shape = (3, case.size, case.size)
    return glyphs.glyphs(shape, False, 64), glyphs.glyphs(shape, True, 64)


def build(case: Case, classes: int, seed: int) -> Any:
    """The case's network with the seed's weights."""
    import torch

    from benchmarks import nets
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

    from benchmarks.sparse_training.bf16 import emulate_where_slow
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
