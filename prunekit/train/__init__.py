"""Training and fine-tuning: data, settings, the loop and what a pruning method plugs into it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.train.batches import loader
    from prunekit.train.config import TrainConfig
    from prunekit.train.data import Data, load_data
    from prunekit.train.evaluating import evaluate, loss_fn
    from prunekit.train.loop import FitResult, fit
    from prunekit.train.rule import JSON, NoRule, Rule

# Imported when used: recipes read the settings' defaults, and need no torch for that.
_WHERE = {
    "JSON": "rule",
    "Data": "data",
    "FitResult": "loop",
    "NoRule": "rule",
    "Rule": "rule",
    "TrainConfig": "config",
    "evaluate": "evaluating",
    "fit": "loop",
    "load_data": "data",
    "loader": "batches",
    "loss_fn": "evaluating",
}

__all__ = [
    "JSON",
    "Data",
    "FitResult",
    "NoRule",
    "Rule",
    "TrainConfig",
    "evaluate",
    "fit",
    "load_data",
    "loader",
    "loss_fn",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'prunekit.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"prunekit.train.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
