"""Metrics of torchmetrics as scorers, and the choice of the metric that decides."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.core.metric import Metric
from prunekit.support.errors import UsageError, first_line


class Library:
    """Metrics of torchmetrics by key, moved to where their first batch is."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = dict(metrics)
        self.placed = False

    def update(self, outputs: Any, targets: Any) -> None:
        """Count one batch in every metric."""
        if not self.placed and hasattr(outputs, "device"):
            self.metrics = {key: m.to(outputs.device) for key, m in self.metrics.items()}
            self.placed = True
        for metric in self.metrics.values():
            metric.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        """Every metric; 0 where nothing was counted."""
        return {key: float(metric.compute()) for key, metric in self.metrics.items()}


def library(part: str = "classification") -> Any:
    """A part of torchmetrics, imported when a metric of it is asked for: that takes seconds."""
    try:
        return importlib.import_module(f"torchmetrics.{part}")
    except ImportError as error:
        raise UsageError(
            f"metrics beside top-1 need torchmetrics ({first_line(error)}); "
            "pip install torchmetrics"
        ) from error


def chosen_first(metrics: Sequence[Metric], key: str | None, task: str) -> tuple[Metric, ...]:
    """``metrics`` with that called ``key`` in front; UsageError for one that the task has not."""
    if key is None:
        return tuple(metrics)
    for metric in metrics:
        if metric.key == key:
            return (metric, *(other for other in metrics if other != metric))
    known = ", ".join(metric.key for metric in metrics)
    raise UsageError(f"`metric` {key!r} is none of {task}; metrics: {known}")
