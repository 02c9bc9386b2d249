"""Training and fine-tuning: data, settings, the loop and what a pruning method plugs into it."""

from prunekit.train.batches import loader
from prunekit.train.config import TrainConfig
from prunekit.train.data import Data, load_data
from prunekit.train.evaluating import evaluate, loss_fn
from prunekit.train.loop import FitResult, fit
from prunekit.train.rule import JSON, NoRule, Rule

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
