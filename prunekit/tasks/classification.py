"""One class for each input: cross entropy and top-1."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError, ModelError
from prunekit.support.processes import sum_
from prunekit.tasks.base import Scorer, shape_text
from prunekit.tasks.classes import ClassTask
from prunekit.tasks.scorers import Library, library

__all__ = ["Classification", "logits_of"]

TOP_1 = Metric("accuracy", "top-1")
_TOP_5 = Metric("top5", "top-5")
_F1 = Metric("f1", "F1 (mean over classes)")
_CALIBRATION = Metric("calibration_error", "calibration error", higher_is_better=False)


class Classification(ClassTask):
    """Whole numbers from 0 to ``num_classes`` - 1 as targets, (batch, classes) logits as outputs.

    Metrics: top-1; top-5 where there are more than five classes; F1, the mean over classes; the
    expected calibration error in 15 bins. ``metric`` is the key of that which decides.
    ``class_weights`` weigh the loss, one per class.
    """

    name: ClassVar[str] = "classification"

    label_smoothing = 0.0

    @classmethod
    def known_metrics(cls, num_classes: int) -> Sequence[Metric]:
        """Top-1 first."""
        return [TOP_1, *([_TOP_5] if num_classes > 5 else []), _F1, _CALIBRATION]

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Tensor]:
        """Inputs, and as many labels, of shape (N,) and of torch's usual integers."""
        return collate_labels(samples)

    def check_target(self, target: Any, where: str) -> None:
        """A whole number within the classes."""
        try:
            number = int(target)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where} gives the label {_brief(target)}; whole numbers from 0 are needed"
            ) from error
        floating = isinstance(target, float) or (
            torch.is_tensor(target) and target.is_floating_point()
        )
        if floating or not 0 <= number < self.num_classes:
            raise DataError(
                f"{where} gives the label {target}; "
                f"whole numbers from 0 to {self.num_classes - 1} are needed"
            )

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        logits = logits_of(outputs, self.num_classes).float()
        return F.cross_entropy(
            logits, targets, self.weights_for(logits), label_smoothing=self.label_smoothing
        )

    def distance(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """To the teacher's soft answer (Hinton et al. 2015)."""
        logits, soft = logits_of(outputs).float(), logits_of(taught).float()
        if soft.shape != logits.shape:
            raise ModelError(
                f"the teacher has {soft.shape[1]} outputs and the model {logits.shape[1]}; "
                "they must agree"
            )
        apart = F.kl_div(
            F.log_softmax(logits / temperature, 1),
            F.log_softmax(soft / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        # The square keeps the gradient's size when the temperature changes.
        return temperature**2 * apart

    def smoothed(self, share: float) -> Classification:
        """The same with another label smoothing."""
        task = copy.copy(self)
        task.label_smoothing = share
        return task

    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """Top-1 by counting; torchmetrics for the others."""
        if brief and self.primary == TOP_1:
            return TopOne(shared=shared)
        wanted = self.metrics[:1] if brief else self.metrics
        others = [metric.key for metric in wanted if metric != TOP_1]
        return _Scorer(TopOne(shared=shared), self._library(others, shared=shared))

    def check_outputs(self, outputs: Any, targets: Any) -> None:
        """Logits for every class."""
        del targets
        logits_of(outputs, self.num_classes)

    def facts(self) -> Mapping[str, object]:
        """None beyond what every checkpoint has had, but for weights."""
        return {} if self.weights is None else {"class_weights": self.weights.tolist()}

    def _library(self, keys: Sequence[str], *, shared: bool) -> Library:
        metrics = library()
        several = {"num_classes": self.num_classes, "sync_on_compute": shared}
        makers = {
            "top5": lambda: metrics.MulticlassAccuracy(top_k=5, average="micro", **several),
            "f1": lambda: metrics.MulticlassF1Score(average="macro", **several),
            "calibration_error": lambda: metrics.MulticlassCalibrationError(n_bins=15, **several),
        }
        return Library({key: makers[key]() for key in keys})


class TopOne:
    """Counts inputs that are put into their class, exactly."""

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.right: Tensor | None = None
        self.seen = 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count one batch."""
        logits = logits_of(outputs)
        right = (logits.argmax(1) == targets.to(logits.device, non_blocking=True)).sum()
        self.right = right if self.right is None else self.right + right
        self.seen += len(targets)

    def compute(self) -> dict[str, float]:
        """Top-1, 0 to 1."""
        right = torch.zeros((), dtype=torch.int64) if self.right is None else self.right
        counts = torch.stack([right, torch.tensor(self.seen, device=right.device)])
        if self.shared:
            sum_(counts)
        right_of_all, seen = counts.tolist()
        return {TOP_1.key: right_of_all / seen if seen else 0.0}


class _Scorer:
    """Top-1 counted, and others of the library on the same logits."""

    def __init__(self, top_one: TopOne, others: Library) -> None:
        self.top_one = top_one
        self.others = others

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count one batch."""
        logits = logits_of(outputs)
        self.top_one.update(logits, targets)
        self.others.update(logits.float().softmax(1), targets.to(logits.device))

    def compute(self) -> dict[str, float]:
        """All of them."""
        return {**self.top_one.compute(), **self.others.compute()}


def logits_of(output: Any, num_classes: int = 1) -> Tensor:
    """The (N, classes) tensor in a model's output; ModelError if it is missing or too narrow."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ModelError(f"the model's output is {shape}; (batch, classes) logits are needed")
    if logits.shape[1] < num_classes:
        raise ModelError(
            f"the model has {logits.shape[1]} outputs but the data has {num_classes} classes; "
            f"build the model with {num_classes} classes"
        )
    return logits


def _checked_labels(labels: Any, count: int) -> Tensor:
    """``labels`` of ``count`` samples as (N,) integers; DataError where they are none."""
    if not isinstance(labels, Tensor):
        raise DataError(
            f"labels are {type(labels).__name__}; one whole number for each input is needed"
        )
    if labels.numel() != count:
        raise DataError(
            f"labels have the shape {shape_text(labels[0])}; "
            "one whole number for each image is needed"
        )
    numbers: Tensor = labels.reshape(-1).long()
    if numbers.min() < 0:
        raise DataError(f"a label is {int(numbers.min())}; labels count from 0")
    return numbers


def collate_labels(samples: Sequence[Any]) -> tuple[Any, Tensor]:
    """A batch for classification whose classes are not known."""
    try:
        inputs, labels = default_collate(list(samples))
    except RuntimeError as error:
        shapes = sorted({shape_text(image) for image, _ in samples})
        if len(shapes) < 2:
            raise
        raise DataError(
            f"images of one batch have different shapes: {', '.join(shapes)}; "
            "resize them alike in the data set"
        ) from error
    return inputs, _checked_labels(labels, len(samples))


def _brief(target: Any) -> str:
    if isinstance(target, Tensor) and target.numel() > 1:
        return f"of shape {shape_text(target)}"
    return repr(target)
