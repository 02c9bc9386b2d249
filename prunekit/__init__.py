"""prunekit: prune a network to a latency that is measured on your target.

Names are loaded on first use; ``import prunekit`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit import sparsify
    from prunekit.allocation import allocate, explain
    from prunekit.allocation.costs import predict
    from prunekit.allocation.solvers import Joint, Knapsack
    from prunekit.core.artifact import Artifact
    from prunekit.core.budget import Budget
    from prunekit.core.graph import ChannelGraph
    from prunekit.core.plan import ChannelPlan
    from prunekit.core.scores import Scores
    from prunekit.core.sparsity import SparsityPlan
    from prunekit.core.target import Environment, Target
    from prunekit.core.timing import Measurement
    from prunekit.criteria import (
        FPGM,
        LAMP,
        Activation,
        BNScale,
        Magnitude,
        Random,
        Reconstruction,
        Taylor,
        TaylorWeight,
        score,
    )
    from prunekit.exporting import export
    from prunekit.latency import LatencyTable
    from prunekit.measuring.bench import BenchResult, bench
    from prunekit.networks.folding import reparameterize
    from prunekit.networks.masking import mask_
    from prunekit.networks.saved import load, save
    from prunekit.networks.slimming import slim
    from prunekit.profiling import harvest
    from prunekit.pruning import IEE, IEESchedule
    from prunekit.pruning.repair import Repaired, repair
    from prunekit.report import Report
    from prunekit.support.errors import PrunekitError
    from prunekit.tracing import trace

_WHERE = {
    "Activation": "criteria",
    "Artifact": "core.artifact",
    "BNScale": "criteria",
    "BenchResult": "measuring.bench",
    "Budget": "core.budget",
    "ChannelGraph": "core.graph",
    "ChannelPlan": "core.plan",
    "Environment": "core.target",
    "FPGM": "criteria",
    "IEE": "pruning",
    "IEESchedule": "pruning",
    "Joint": "allocation.solvers",
    "Knapsack": "allocation.solvers",
    "LAMP": "criteria",
    "LatencyTable": "latency",
    "Magnitude": "criteria",
    "Measurement": "core.timing",
    "PrunekitError": "support.errors",
    "Random": "criteria",
    "Reconstruction": "criteria",
    "Repaired": "pruning.repair",
    "Report": "report",
    "Scores": "core.scores",
    "SparsityPlan": "core.sparsity",
    "Target": "core.target",
    "Taylor": "criteria",
    "TaylorWeight": "criteria",
    "allocate": "allocation",
    "bench": "measuring.bench",
    "explain": "allocation",
    "export": "exporting",
    "harvest": "profiling",
    "load": "networks.saved",
    "mask_": "networks.masking",
    "predict": "allocation.costs",
    "repair": "pruning.repair",
    "reparameterize": "networks.folding",
    "save": "networks.saved",
    "score": "criteria",
    "slim": "networks.slimming",
    "sparsify": "sparsify",
    "trace": "tracing",
}

__all__ = [
    "FPGM",
    "IEE",
    "LAMP",
    "Activation",
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
    "Reconstruction",
    "Repaired",
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
    "repair",
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
