"""What a training writes at every epoch's end, to go on from there as if never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

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
from prunekit.train.method_state import Saved, named
from prunekit.train.rule import Facts, Tensors

__all__ = ["restore", "save"]


@dataclass
class _Checkpoint:
    """What one file holds: a state of everything that changes, and the settings it is of."""

    settings: Facts
    position: Position
    model: Tensors
    optimizer: Saved
    rule: Saved
    ema: Tensors = field(default_factory=dict)
    """Empty where nothing is averaged."""
    scaler: Facts = field(default_factory=dict)
    """Empty without mixed precision."""

    def saved(self) -> Saved:
        """In the form of the file."""
        parts = {
            "model": self.model,
            "ema": self.ema,
            "optimizer": self.optimizer.tensors,
            "rule": self.rule.tensors,
        }
        facts = {
            "settings": self.settings,
            "position": asdict(self.position),
            "optimizer": self.optimizer.facts,
            "rule": self.rule.facts,
            "scaler": self.scaler,
        }
        return Saved({f"{part}.{n}": t for part, ts in parts.items() for n, t in ts.items()}, facts)

    @classmethod
    def read(cls, path: Path) -> _Checkpoint:
        """From a file; FileError for one that is damaged or another's."""
        tensors, facts = load_checkpoint(path)
        try:
            settings, position = facts["settings"], Position(**facts["position"])
        except (KeyError, TypeError) as error:
            raise FileError(f"checkpoint {path} is not from this prunekit; remove it") from error
        return cls(
            settings=settings,
            position=position,
            model=named(tensors, "model"),
            optimizer=Saved(named(tensors, "optimizer"), facts["optimizer"]),
            rule=Saved(named(tensors, "rule"), facts["rule"]),
            ema=named(tensors, "ema"),
            scaler=facts["scaler"],
        )


def _settings(run: Run) -> Facts:
    """What a checkpoint and the training that goes on from it must have in common."""
    rule = type(run.rule)
    settings = {
        **run.config.essence(),
        "data": run.data.name,
        "training samples": size(run.data.train),
        "input_shape": list(run.data.input_shape),
        "rule": f"{rule.__module__}.{rule.__qualname__}",
        **run.task.facts(),
    }
    as_read: Facts = json.loads(json.dumps(settings))
    return as_read


def save(run: Run, position: Position, path: Path) -> None:
    """Write the checkpoint of ``run`` at ``position``; raises FileError where that fails."""
    scaler = run.accelerator.scaler
    checkpoint = _Checkpoint(
        settings=_settings(run),
        position=position,
        model=tensors_of(run.model),
        optimizer=pack_optimizer(run.optimizer),
        rule=Saved(*run.rule.state()),
        ema={} if run.ema is None else run.ema.values,
        scaler={} if scaler is None else scaler.state_dict(),
    )
    save_checkpoint(path, checkpoint.saved())


def restore(run: Run, path: Path) -> Position:
    """Take everything back from the checkpoint, and tell where it stands.

    Raises FileError for a damaged file, UsageError for one of another model or other settings.
    """
    checkpoint = _Checkpoint.read(path)
    _check_settings(run, checkpoint.settings, path)
    _check_model(run.model, checkpoint.model, path)
    put(run.model, checkpoint.model)
    if run.ema is not None:
        for name, tensor in run.ema.values.items():
            tensor.copy_(checkpoint.ema[name])
    rule = {name: tensor.to(run.device) for name, tensor in checkpoint.rule.tensors.items()}
    run.rule.load_state(rule, checkpoint.rule.facts)
    # After the rule, which may give the optimizer other parameters.
    unpack_optimizer(run.optimizer, checkpoint.optimizer)
    if run.accelerator.scaler is not None and checkpoint.scaler:
        run.accelerator.scaler.load_state_dict(checkpoint.scaler)
    return checkpoint.position


def _check_settings(run: Run, then: Facts, path: Path) -> None:
    for key, value in _settings(run).items():
        if then.get(key) != value:
            raise UsageError(
                f"checkpoint {path} was made with `{key}` {then.get(key)!r}, now it is "
                f"{value!r}; use the same to resume, or start anew without resuming"
            )


def _check_model(model: nn.Module, saved: Tensors, path: Path) -> None:
    live = tensors_of(model)
    for name in sorted({*live} ^ {*saved}):
        raise UsageError(f"checkpoint {path} is of another model: they differ in {name}")
    for name, tensor in live.items():
        if (shape := saved[name].shape) != tensor.shape:
            raise UsageError(
                f"checkpoint {path} is of another model: {name} is {list(shape)} there and "
                f"{list(tensor.shape)} here"
            )
