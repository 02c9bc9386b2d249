"""What tasks of classes share: how many there are, and what each weighs in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunekit.core.metric import Metric
from prunekit.support.errors import UsageError
from prunekit.tasks.base import Task
from prunekit.tasks.scorers import chosen_first


class ClassTask(Task):
    """``metric`` is the key of that which decides; ``class_weights`` are one per class."""

    def __init__(
        self,
        num_classes: int,
        *,
        metric: str | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.num_classes = self.num_outputs = num_classes
        self.metrics = chosen_first(self.known_metrics(num_classes), metric, self.name)
        self.weights = _checked(class_weights, num_classes)

    @classmethod
    def known_metrics(cls, num_classes: int) -> Sequence[Metric]:
        """All that the task has."""
        raise NotImplementedError

    def weights_for(self, logits: Tensor) -> Tensor | None:
        """The weights where the logits are; None where all classes weigh the same."""
        return None if self.weights is None else self.weights.to(logits.device)

    def facts(self) -> Mapping[str, object]:
        """Its name and weights."""
        weights = None if self.weights is None else self.weights.tolist()
        return {"task": self.name, "class_weights": weights}


def _checked(weights: Sequence[float] | None, count: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != count or not all(weight > 0 for weight in weights):
        raise UsageError(
            f"`class_weights` has {len(weights)} values; one above 0 for each of the {count} "
            "classes is needed"
        )
    return torch.tensor([float(weight) for weight in weights])
