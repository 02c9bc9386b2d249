"""What a training writes at every epoch's end, to go on from there as if never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit.support.errors import FileError, UsageError
from prunekit.train.batches import size
from prunekit.train.checkpoint import (
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from prunekit.train.ema import put, tensors_of
from prunekit.train.engine import Position, Run

__all__ = ["restore", "save"]


def _facts(run: Run) -> dict[str, Any]:
    """What a checkpoint and the training that goes on from it must have in common."""
    rule = type(run.rule)
    facts = {
        **run.config.essence(),
        "data": run.data.name,
        "training samples": size(run.data.train),
        "input_shape": list(run.data.input_shape),
        "rule": f"{rule.__module__}.{rule.__qualname__}",
    }
    same: dict[str, Any] = json.loads(json.dumps(facts))
    return same


def save(run: Run, position: Position, path: Path) -> None:
    """Write the checkpoint of ``run`` at ``position``; raises FileError where that fails."""
    optimizer_tensors, optimizer_facts = pack_optimizer(run.optimizer)
    rule_tensors, rule_facts = run.rule.state()
    parts = {
        "model": tensors_of(run.model),
        "ema": {} if run.ema is None else run.ema.values,
        "optimizer": optimizer_tensors,
        "rule": rule_tensors,
    }
    tensors = {f"{part}.{n}": t for part, named in parts.items() for n, t in named.items()}
    scaler = run.accelerator.scaler
    facts = {
        "settings": _facts(run),
        "position": asdict(position),
        "optimizer": optimizer_facts,
        "rule": rule_facts,
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    save_checkpoint(path, tensors, facts)


def restore(run: Run, path: Path) -> Position:
    """Take everything back from the checkpoint, and tell where it stands.

    Raises FileError for a damaged file, UsageError for one of another model or other settings.
    """
    tensors, facts = load_checkpoint(path)
    try:
        settings, position = facts["settings"], Position(**facts["position"])
    except (KeyError, TypeError) as error:
        raise FileError(f"checkpoint {path} is not from this prunekit; remove it") from error
    for key, value in _facts(run).items():
        if settings.get(key) != value:
            raise UsageError(
                f"checkpoint {path} was made with `{key}` {settings.get(key)!r}, now it is "
                f"{value!r}; use the same to resume, or start anew without resuming"
            )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "rule": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    live = tensors_of(run.model)
    for name in sorted({*live} ^ {*parts["model"]}):
        raise UsageError(f"checkpoint {path} is of another model: they differ in {name}")
    for name, tensor in live.items():
        if (saved := parts["model"][name].shape) != tensor.shape:
            raise UsageError(
                f"checkpoint {path} is of another model: {name} is {list(saved)} there and "
                f"{list(tensor.shape)} here"
            )
    put(run.model, parts["model"])
    if run.ema is not None:
        for name, tensor in run.ema.values.items():
            tensor.copy_(parts["ema"][name])
    rule_tensors = {name: tensor.to(run.device) for name, tensor in parts["rule"].items()}
    run.rule.load_state(rule_tensors, facts["rule"])
    # After the rule, which may give the optimizer other parameters.
    unpack_optimizer(run.optimizer, parts["optimizer"], facts["optimizer"])
    if run.accelerator.scaler is not None and facts["scaler"]:
        run.accelerator.scaler.load_state_dict(facts["scaler"])
    return position
