"""Torch-Pruning's own pruners as its users use them, brought to the same measured latency."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.iee_channels.training import measured, scores, train
from prunekit.networks.weights import load_weights
from prunekit.pipeline.examples import example_input
from prunekit.train import Data, loader, loss_fn

BATCHES = 8
"""As many as prunekit's one-shot scores use."""
BLOCK = 16
"""Widths are multiples of this, as for all other methods."""


def rival(run: Any, case: Any, model: nn.Module, data: Data, weights: Path) -> dict[str, Any]:
    """Prune at the ratio that just meets the latency, then fine-tune as long as the others."""
    load_weights(model, weights)
    model.eval()
    wanted = float(run.target.rstrip("%")) / 100
    low, high, found = 0.0, 0.98, None
    seen: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(8):
            ratio = (low + high) / 2
            small = pruned(run, case, model, data, ratio)
            size = sum(p.numel() for p in small.parameters())
            if size in seen and found is not None:
                break
            seen.add(size)
            timed = measured(model, copy.deepcopy(small), case, Path(folder))
            if timed.ratio <= wanted * 1.005:
                high = ratio
                if found is None or timed.ratio > found[1].ratio:
                    found = small, timed
            else:
                low = ratio
    if found is None:
        raise SystemExit("no pruning ratio is fast enough")
    small, timed = found
    example = example_input(case.input)
    macs = (
        tp.utils.count_ops_and_params(small, example)[0]
        / tp.utils.count_ops_and_params(model, example)[0]
    )
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    result = train(small, data, case, case.fine_tune_lr)
    return {
        **result,
        **scores(small, case),
        "ratio": timed.ratio,
        "ratio_ci": [timed.low, timed.high],
        "relative_flops": 1 + macs,
        "macs_ratio": macs,
    }


def pruned(run: Any, case: Any, model: nn.Module, data: Data, ratio: float) -> nn.Module:
    """A pruned copy; the criterion is Torch-Pruning's own."""
    small = copy.deepcopy(model)
    classifier = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    importance = {
        "taylor": tp.importance.GroupTaylorImportance,
        "magnitude": tp.importance.GroupMagnitudeImportance,
    }[run.criterion]()
    pruner = tp.pruner.BasePruner(
        small,
        example_input(case.input),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=run.method.endswith("global"),
        ignored_layers=[classifier],
        round_to=BLOCK,
    )
    if run.criterion == "taylor":
        torch.manual_seed(run.seed)
        batches = loader(data.train, case.batch_size, run.seed)
        small.zero_grad()
        for batch, _ in zip(batches, range(BATCHES), strict=False):
            loss_fn(small, batch).backward()
    pruner.step()
    small.zero_grad()
    return small
