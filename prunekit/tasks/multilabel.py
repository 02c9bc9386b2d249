"""Any number of classes for each input: binary cross entropy and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError
from prunekit.tasks.base import Scorer, shape_text
from prunekit.tasks.classes import ClassTask
from prunekit.tasks.classification import logits_of
from prunekit.tasks.scorers import Library, library

_METRICS = (
    Metric("map", "mean average precision"),
    Metric("f1", "F1 (mean over classes)"),
)


class MultiLabel(ClassTask):
    """Vectors of zeros and ones as targets, (batch, classes) logits as outputs.

    Metrics: average precision, the mean over classes; F1 at a half, the mean over classes.
    ``class_weights`` weigh what is there against what is not, one per class.
    """

    name: ClassVar[str] = "multilabel"

    @classmethod
    def known_metrics(cls, num_classes: int) -> Sequence[Metric]:
        """Average precision first."""
        del num_classes
        return _METRICS

    def check_target(self, target: Any, where: str) -> None:
        """Zeros and ones, one per class."""
        values = torch.as_tensor(target)
        if values.shape != (self.num_classes,):
            raise DataError(
                f"{where} gives labels of the shape {shape_text(values) or 'of one number'}; "
                f"{self.num_classes} zeros or ones are needed"
            )
        if not bool(((values == 0) | (values == 1)).all()):
            raise DataError(f"{where} gives labels that are neither 0 nor 1")

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean binary cross entropy."""
        logits = logits_of(outputs, self.num_classes).float()
        return F.binary_cross_entropy_with_logits(
            logits[:, : self.num_classes], targets.float(), pos_weight=self.weights_for(logits)
        )

    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """Of torchmetrics, over all batches."""
        metrics = library()
        several = {"num_labels": self.num_classes, "sync_on_compute": shared}
        makers = {
            "map": lambda: metrics.MultilabelAveragePrecision(average="macro", **several),
            "f1": lambda: metrics.MultilabelF1Score(average="macro", **several),
        }
        wanted = self.metrics[:1] if brief else self.metrics
        return _Scorer(Library({metric.key: makers[metric.key]() for metric in wanted}))


class _Scorer:
    """The library's metrics take probabilities and whole numbers."""

    def __init__(self, metrics: Library) -> None:
        self.metrics = metrics

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count one batch."""
        logits = logits_of(outputs).float()
        self.metrics.update(logits.sigmoid(), targets.to(logits.device).long())

    def compute(self) -> dict[str, float]:
        """All of them."""
        return self.metrics.compute()
