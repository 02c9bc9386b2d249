"""A class for every pixel: cross entropy and mean intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError, ModelError
from prunekit.support.processes import sum_
from prunekit.tasks.base import Scorer, shape_text, tensors_in
from prunekit.tasks.classes import ClassTask

VOID = 255
"""The label of pixels that do not count."""
AUXILIARY = 0.4
"""The weight of a second head's loss, as torchvision's reference training has it."""
_METRICS = (Metric("miou", "mean IoU"), Metric("pixel_accuracy", "pixel accuracy"))


class Segmentation(ClassTask):
    """(H, W) masks of whole numbers as targets, (batch, classes, H, W) logits as outputs.

    Pixels of 255 do not count. Outputs smaller than the masks are enlarged to them, bilinearly.
    Where a network gives several maps, as torchvision's with ``aux``, the first is the answer and
    the others are trained at 0.4 of its loss. Metrics: intersection over union, the mean over
    classes that are there; the share of pixels in their class.
    """

    name: ClassVar[str] = "segmentation"

    @classmethod
    def known_metrics(cls, num_classes: int) -> Sequence[Metric]:
        """Mean IoU first."""
        del num_classes
        return _METRICS

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Tensor]:
        """Inputs, and masks of torch's usual integers."""
        inputs, masks = super().collate(samples)
        return inputs, masks.long()

    def check_target(self, target: Any, where: str) -> None:
        """A mask of classes that there are."""
        mask = torch.as_tensor(target)
        if mask.ndim != 2 or mask.is_floating_point():
            raise DataError(
                f"{where} gives a mask of {mask.dtype} and shape {shape_text(mask)}; "
                "whole numbers of the shape HxW are needed"
            )
        wrong = mask[(mask != VOID) & ((mask < 0) | (mask >= self.num_classes))]
        if wrong.numel():
            raise DataError(
                f"{where} has the class {int(wrong[0])} in a mask; 0 to {self.num_classes - 1} "
                f"and {VOID} (not counted) are known"
            )

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross entropy over the pixels that count."""
        first, *others = self._maps(outputs, targets)
        loss = self._loss(first, targets)
        for other in others:
            loss = loss + AUXILIARY * self._loss(other, targets)
        return loss

    def distance(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """To the teacher's soft answer, the mean over pixels."""
        mine, theirs = (self._answer(value) for value in (outputs, taught))
        if mine.shape != theirs.shape:
            raise ModelError(
                f"the teacher's output is {shape_text(theirs)} and the model's "
                f"{shape_text(mine)}; they must agree"
            )
        soft = F.log_softmax(theirs / temperature, 1)
        apart = F.kl_div(
            F.log_softmax(mine / temperature, 1), soft, reduction="none", log_target=True
        )
        return temperature**2 * apart.sum(1).mean()

    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """One table of counts, which both metrics are read from."""
        del brief
        return _Scorer(self, shared)

    def answer(self, outputs: Any, size: tuple[int, int]) -> Tensor:
        """The class of every pixel of a picture of ``size``."""
        return _enlarged(self._answer(outputs), size).argmax(1)

    def _answer(self, outputs: Any) -> Tensor:
        maps = tensors_in(outputs)
        if not maps or maps[0].ndim != 4 or maps[0].shape[1] < self.num_classes:
            shape = shape_text(maps[0]) if maps else type(outputs).__name__
            raise ModelError(
                f"the model's output is {shape}; (batch, {self.num_classes} classes, height, "
                "width) logits are needed for segmentation"
            )
        return maps[0].float()

    def _maps(self, outputs: Any, masks: Tensor) -> list[Tensor]:
        """All maps of logits in the outputs, at the masks' size."""
        self._answer(outputs)
        size = (masks.shape[-2], masks.shape[-1])
        maps = [m for m in tensors_in(outputs) if m.ndim == 4 and m.shape[1] >= self.num_classes]
        return [_enlarged(m.float(), size) for m in maps]

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        weights = self.weights_for(logits)
        kept = logits[:, : self.num_classes]
        summed = F.cross_entropy(kept, masks, weights, ignore_index=VOID, reduction="sum")
        counted = masks != VOID
        if weights is None:
            return summed / counted.sum().clamp(min=1)
        return summed / weights[masks[counted]].sum().clamp(min=torch.finfo(torch.float32).tiny)


class _Scorer:
    """Counts of (true class, class given) over all pixels."""

    def __init__(self, task: Segmentation, shared: bool) -> None:
        self.task = task
        self.shared = shared
        self.counts = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64)

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count one batch."""
        classes = self.task.num_classes
        size = (targets.shape[-2], targets.shape[-1])
        answer = _enlarged(self.task._answer(outputs)[:, :classes], size).argmax(1).cpu()
        masks = targets.cpu()
        counted = masks != VOID
        pairs = masks[counted] * classes + answer[counted]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def compute(self) -> dict[str, float]:
        """Both metrics, 0 to 1."""
        counts = self.counts.clone()
        if self.shared:
            sum_(counts)
        right = counts.diagonal().double()
        union = counts.sum(0) + counts.sum(1) - counts.diagonal()
        there = union > 0
        shares = right[there] / union[there]
        return {
            "miou": float(shares.mean()) if len(shares) else 0.0,
            "pixel_accuracy": float(right.sum() / counts.sum().clamp(min=1)),
        }


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
