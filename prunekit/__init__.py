"""prunekit: prune a network to a latency that is measured on your target.

Names are loaded on first use; ``import prunekit`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit import sparsify
    from prunekit.allocation import Joint, Knapsack
    from prunekit.artifact import Artifact
    from prunekit.benching import BenchResult, bench
    from prunekit.budget import Budget
    from prunekit.costs import predict
    from prunekit.criteria import (
        FPGM,
        LAMP,
        BNScale,
        Magnitude,
        Random,
        Taylor,
        TaylorWeight,
        score,
    )
    from prunekit.errors import PrunekitError
    from prunekit.exporting import export
    from prunekit.folding import reparameterize
    from prunekit.graph import ChannelGraph
    from prunekit.latency import LatencyTable
    from prunekit.masks import mask_
    from prunekit.plan import ChannelPlan
    from prunekit.profiling import harvest
    from prunekit.report import Report
    from prunekit.runs import load, save
    from prunekit.scores import Scores
    from prunekit.sparsify import IEESchedule, allocate, explain
    from prunekit.sparsify.iee import IEE
    from prunekit.sparsity import SparsityPlan
    from prunekit.surgery import slim
    from prunekit.target import Environment, Target
    from prunekit.timing import Measurement
    from prunekit.tracing import trace

_WHERE = {
    "Artifact": "artifact",
    "BNScale": "criteria",
    "BenchResult": "benching",
    "Budget": "budget",
    "ChannelGraph": "graph",
    "ChannelPlan": "plan",
    "Environment": "target",
    "FPGM": "criteria",
    "IEE": "sparsify.iee",
    "IEESchedule": "sparsify",
    "Joint": "allocation",
    "Knapsack": "allocation",
    "LAMP": "criteria",
    "LatencyTable": "latency",
    "Magnitude": "criteria",
    "Measurement": "timing",
    "PrunekitError": "errors",
    "Random": "criteria",
    "Report": "report",
    "Scores": "scores",
    "SparsityPlan": "sparsity",
    "Target": "target",
    "Taylor": "criteria",
    "TaylorWeight": "criteria",
    "allocate": "sparsify",
    "bench": "benching",
    "explain": "sparsify",
    "export": "exporting",
    "harvest": "profiling",
    "load": "runs",
    "mask_": "masks",
    "predict": "costs",
    "reparameterize": "folding",
    "save": "runs",
    "score": "criteria",
    "slim": "surgery",
    "sparsify": "sparsify",
    "trace": "tracing",
}

__all__ = [
    "FPGM",
    "IEE",
    "LAMP",
    "Artifact",
    "BNScale",
    "BenchResult",
    "Budget",
    "ChannelGraph",
    "ChannelPlan",
    "Environment",
    "IEESchedule",
    "Joint",
    "Knapsack",
    "LatencyTable",
    "Magnitude",
    "Measurement",
    "PrunekitError",
    "Random",
    "Report",
    "Scores",
    "SparsityPlan",
    "Target",
    "Taylor",
    "TaylorWeight",
    "allocate",
    "bench",
    "explain",
    "export",
    "harvest",
    "load",
    "mask_",
    "predict",
    "reparameterize",
    "save",
    "score",
    "slim",
    "sparsify",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    module = importlib.import_module(f"prunekit.{_WHERE[name]}")
    # `sparsify` is a package, whose methods are used by its name
    value = module if _WHERE[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
