"""Boxes and classes of objects: the network's own losses, and COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError, ModelError, UsageError, first_line
from prunekit.tasks.base import Forward, Scorer, Task, shape_text
from prunekit.tasks.scorers import chosen_first

_METRICS = (
    Metric("map", "COCO mAP"),
    Metric("map50", "mAP at IoU 0.5"),
    Metric("map_small", "mAP of small objects"),
)
LEAST_SCORE, OVERLAP = 0.01, 0.45
CANDIDATES, MOST = 400, 100
"""Of an image: what is looked at of each class before overlaps go, and what is left at most."""


class Detection(Task):
    """Boxes and labels as targets; boxes, scores and losses of its own from the network.

    A target is ``{"boxes": (objects, 4), "labels": (objects,)}``: left, top, right, bottom in
    pixels of the image as the network gets it, and whole numbers from 0. Objects whose ``iscrowd``
    is 1 count neither as right nor as missed. The network gives
    ``boxes`` (N, places, 4) and ``scores`` (N, places, classes); called with targets as well, its
    losses by name and these outputs: see :class:`prunekit.networks.detectors.OneStageDetector`.

    Metrics: COCO's mean average precision (IoU 0.5 to 0.95), that at 0.5, and that of objects
    below 32 pixels squared, over 100 objects an image. ``class_names`` are those of the report.
    """

    name: ClassVar[str] = "detection"

    def __init__(
        self, num_classes: int, *, metric: str | None = None, class_names: Sequence[str] = ()
    ) -> None:
        self.num_classes = self.num_outputs = num_classes
        self.metrics = chosen_first(_METRICS, metric, self.name)
        self.class_names = tuple(class_names)

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Images, stacked, and a list of targets."""
        try:
            images = default_collate([image for image, _ in samples])
        except RuntimeError as error:
            shapes = sorted({shape_text(image) for image, _ in samples})
            raise DataError(
                f"images of one batch have different shapes: {', '.join(shapes)}; "
                "resize them alike in the data set"
            ) from error
        return images, [
            {
                "boxes": torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4),
                **{
                    key: torch.as_tensor(target[key], dtype=torch.int64).reshape(-1)
                    for key in ("labels", "iscrowd")
                    if key in target
                },
            }
            for _, target in samples
        ]

    def check_target(self, target: Any, where: str) -> None:
        """As many boxes as labels, with an area, of classes that there are."""
        if not isinstance(target, Mapping) or not {"boxes", "labels"} <= {*target}:
            raise DataError(
                f"{where} gives targets of {type(target).__name__}; a dictionary with `boxes` "
                "(objects, 4) and `labels` (objects,) is needed for detection"
            )
        boxes, labels = (torch.as_tensor(target[key]) for key in ("boxes", "labels"))
        if boxes.numel() != 4 * labels.numel() or (len(boxes) and boxes.shape[-1] != 4):
            raise DataError(
                f"{where} gives boxes of {shape_text(boxes)} and {labels.numel()} labels; "
                "one box of 4 numbers for each label is needed"
            )
        if not bool(boxes.isfinite().all()):
            raise DataError(f"{where} has a box that is not a number; repair or remove it")
        if len(boxes) and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            wrong = boxes[~(boxes[:, 2:] > boxes[:, :2]).all(1)][0].tolist()
            raise DataError(
                f"{where} has the box {wrong}, which has no area; a box is left, top, right, bottom"
            )
        strange = labels[(labels < 0) | (labels >= self.num_classes)]
        if strange.numel():
            raise DataError(
                f"{where} has the label {int(strange[0])}; 0 to {self.num_classes - 1} are known"
            )

    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        """None: a detector's losses are its own."""
        del outputs, targets
        raise ModelError("a detector's loss is its own; it is called with the targets")

    def loss(self, forward: Forward, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
        """The sum of the network's losses, and its outputs."""
        try:
            losses, outputs = forward(inputs, targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                "for detection a network is called with images and targets and gives losses and "
                f"outputs ({first_line(error)}); torchvision's SSD, RetinaNet and FCOS do"
            ) from error
        return total, outputs

    def distance(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """Of scores, and of boxes where the teacher sees something, in sizes of its boxes."""
        del temperature
        scores, soft = outputs["scores"].float(), taught["scores"].float()
        if scores.shape != soft.shape:
            raise ModelError(
                f"the teacher's scores are {shape_text(soft)} and the model's "
                f"{shape_text(scores)}; they must agree"
            )
        weight = soft.amax(-1)
        size = (taught["boxes"][..., 2:] - taught["boxes"][..., :2]).float().clamp(min=1.0)
        apart = (outputs["boxes"].float() - taught["boxes"].float()) / size.repeat(1, 1, 2)
        boxes = F.smooth_l1_loss(apart, torch.zeros_like(apart), reduction="none").mean(-1)
        crossed = F.binary_cross_entropy(scores.clamp(0, 1), soft.clamp(0, 1), reduction="none")
        apart_by_place = crossed.sum(-1) + weight * boxes
        distance: Tensor = apart_by_place.sum() / weight.sum().clamp(min=1.0)
        return distance

    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """COCO's protocol, by faster-coco-eval through torchmetrics."""
        del brief  # all of them are read from the same matches
        return _Scorer(self, shared=shared)

    def outputs_of(self, arrays: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        """Boxes and scores, in the order of the file."""
        boxes, scores = (torch.as_tensor(np.asarray(array, np.float32)) for array in arrays[:2])
        return {"boxes": boxes, "scores": scores}

    def check_outputs(self, outputs: Any, targets: Any) -> None:
        """Boxes and scores of the same places, a score for every class."""
        del targets
        parts = outputs if isinstance(outputs, Mapping) else {}
        boxes, scores = parts.get("boxes"), parts.get("scores")
        if not isinstance(boxes, Tensor) or not isinstance(scores, Tensor) or boxes.ndim != 3:
            raise ModelError(
                f"the model's output is {shape_text(outputs)}; for detection it is `boxes` (batch, "
                "places, 4) and `scores` (batch, places, classes), as of torchvision:ssd300_vgg16"
            )
        if scores.shape != (*boxes.shape[:2], self.num_classes):
            raise ModelError(
                f"the model's scores are {shape_text(scores)}; the data has {self.num_classes} "
                f"classes, so that {shape_text(boxes[..., 0])}x{self.num_classes} are needed"
            )


def detections(boxes: Tensor, scores: Tensor) -> list[dict[str, Tensor]]:
    """The objects of every image: ``boxes`` (objects, 4), ``scores`` and ``labels``, best first.

    ``boxes`` is (N, places, 4), ``scores`` (N, places, classes). Scores above 0.01 count. Of two
    boxes of one class that overlap by more than 0.45 (IoU) the better one stays. 100 are left at
    most.
    """
    from torchvision.ops import batched_nms

    objects = []
    for places, values in zip(boxes.float(), scores.float(), strict=True):
        best, where = values.topk(min(CANDIDATES, len(values)), dim=0)
        labels = torch.arange(values.shape[1], device=values.device).expand_as(best)
        chosen = best > LEAST_SCORE
        kept_boxes, kept_scores, kept_labels = places[where[chosen]], best[chosen], labels[chosen]
        stay = batched_nms(kept_boxes, kept_scores, kept_labels, OVERLAP)[:MOST]
        objects.append(
            {"boxes": kept_boxes[stay], "scores": kept_scores[stay], "labels": kept_labels[stay]}
        )
    return objects


class _Scorer:
    """Objects of all images, matched by COCO's protocol at the end."""

    def __init__(self, task: Detection, *, shared: bool) -> None:
        self.task = task
        try:
            import faster_coco_eval  # type: ignore[import-untyped]  # noqa: F401
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            raise UsageError(
                f"the metrics of detection need faster-coco-eval ({first_line(error)}); "
                "pip install 'prunekit[detection]'"
            ) from error
        self.metric: Any = MeanAveragePrecision(
            backend="faster_coco_eval", class_metrics=True, sync_on_compute=shared
        )
        self.metric.warn_on_many_detections = False

    def update(self, outputs: Any, targets: Any) -> None:
        """Count one batch."""
        objects = detections(outputs["boxes"].detach().cpu(), outputs["scores"].detach().cpu())
        right = [{key: value.cpu() for key, value in target.items()} for target in targets]
        self.metric.update(objects, right)

    def compute(self) -> dict[str, float]:
        """All of them; 0 where there is nothing to find."""
        values = self.metric.compute()
        names = {"map": "map", "map50": "map_50", "map_small": "map_small"}
        return {key: max(0.0, float(values[name])) for key, name in names.items()}
