"""torchvision's one-stage detectors as plain networks: an image in, boxes and scores out.

A detector of torchvision resizes and normalises inside. In training it makes losses, in evaluation
lists whose lengths depend on what is seen: nothing that a file can hold. Here its backbone and head
run on images of one size, boxes are decoded by anchors that are constants for that size, and
everything is a tensor. What is left to do for a list of objects is a threshold and a suppression of
overlaps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and spread that images come normalised by, here as elsewhere."""


class OneStageDetector(nn.Module):
    """SSD, SSDlite, RetinaNet or FCOS, with the weights' names of torchvision.

    Takes images (N, 3, H, W), normalised by ImageNet's statistics. Gives ``boxes`` (N, places, 4):
    left, top, right, bottom in pixels, inside of the image; and ``scores`` (N, places, classes), 0
    to 1, without a column for the background. With ``targets``, a list of ``boxes`` (objects, 4)
    and ``labels`` (objects,) from 0, it gives its losses by name first, then the same outputs.
    """

    backbone: nn.Module
    head: nn.Module
    scale: Tensor | None
    shift: Tensor | None
    _lender: Any

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head  # type: ignore[assignment]
        # Not a part of this one: it lends its anchors, coder and losses, which have no weights.
        object.__setattr__(self, "_lender", detector)
        self.family = type(detector).__name__
        self.has_background = self.family == "SSD"
        self._places: dict[tuple[Any, ...], Tensor] = {}
        for name, value in zip(("scale", "shift"), _normalisation(detector), strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor, targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Outputs, or losses and outputs."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        maps = self.backbone(images)
        features = [maps] if isinstance(maps, Tensor) else list(maps.values())
        answers = self.head(features)
        places = self._anchors(images, features)
        outputs = {
            "boxes": self._boxes(answers, places, images),
            "scores": self._scores(answers),
        }
        if targets is None:
            return outputs
        return self._losses(answers, places, features, targets), outputs

    def _anchors(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """(places, 4), computed once for each size: they are constants of a file."""
        sizes = tuple(tuple(map(int, feature.shape[-2:])) for feature in features)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        key = (size, sizes, images.device)
        if key not in self._places:
            from torchvision.models.detection.image_list import ImageList

            with torch.no_grad():
                blank = torch.zeros(1, 3, *size, device=images.device)
                empty = [torch.zeros(1, 1, *part, device=images.device) for part in sizes]
                (places,) = self._lender.anchor_generator(ImageList(blank, [size]), empty)
            self._places = {key: places.detach()}
        return self._places[key]

    def _boxes(self, answers: dict[str, Tensor], places: Tensor, images: Tensor) -> Tensor:
        codes = answers["bbox_regression"]
        size = places[:, 2:] - places[:, :2]
        centre = places[:, :2] + 0.5 * size
        if self.family == "FCOS":  # distances to the four sides, in sizes of a place
            left_top = centre - codes[..., :2] * size
            right_bottom = centre + codes[..., 2:] * size
        else:
            coder = self._lender.box_coder
            step = codes.new_tensor(coder.weights)
            moved = codes[..., :2] / step[:2] * size + centre
            grown = torch.exp((codes[..., 2:] / step[2:]).clamp(max=coder.bbox_xform_clip)) * size
            left_top, right_bottom = moved - 0.5 * grown, moved + 0.5 * grown
        height, width = int(images.shape[-2]), int(images.shape[-1])
        x = torch.cat([left_top[..., :1], right_bottom[..., :1]], -1).clamp(0, width)
        y = torch.cat([left_top[..., 1:], right_bottom[..., 1:]], -1).clamp(0, height)
        return torch.cat([x[..., :1], y[..., :1], x[..., 1:], y[..., 1:]], -1)

    def _scores(self, answers: dict[str, Tensor]) -> Tensor:
        logits = answers["cls_logits"]
        if self.has_background:
            return logits.softmax(-1)[..., 1:]
        scores = logits.sigmoid()
        return (
            (scores * answers["bbox_ctrness"].sigmoid()).sqrt() if self.family == "FCOS" else scores
        )

    def _losses(
        self,
        answers: dict[str, Tensor],
        places: Tensor,
        features: list[Tensor],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Torchvision's own, on this network's head."""
        lender = self._lender
        lender.backbone, lender.head = self.backbone, self.head
        labelled = [
            {"boxes": t["boxes"], "labels": t["labels"] + int(self.has_background)} for t in targets
        ]
        anchors = [places] * len(labelled)
        if self.family == "FCOS":
            counts = [feature.shape[-2] * feature.shape[-1] for feature in features]
            losses: dict[str, Tensor] = lender.compute_loss(labelled, answers, anchors, counts)
        elif self.family == "RetinaNet":
            losses = lender.compute_loss(labelled, answers, anchors)
        else:
            matches = [self._matches(target["boxes"], places) for target in labelled]
            losses = lender.compute_loss(labelled, answers, anchors, matches)
        return losses

    def _matches(self, boxes: Tensor, places: Tensor) -> Tensor:
        """The object of every place, or -1."""
        if not len(boxes):
            return torch.full((len(places),), -1, dtype=torch.int64, device=places.device)
        from torchvision.ops import box_iou

        matches: Tensor = self._lender.proposal_matcher(box_iou(boxes, places))
        return matches


def _normalisation(detector: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """From images normalised as usual to those that the weights are of; None where alike."""
    mean, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    transform: Any = detector.transform
    own_mean, own_spread = (
        torch.tensor(list(map(float, values))).view(1, -1, 1, 1)
        for values in (transform.image_mean, transform.image_std)
    )
    if own_mean.shape != mean.shape or (
        torch.allclose(own_mean, mean) and torch.allclose(own_spread, spread)
    ):
        return None, None
    return spread / own_spread, (mean - own_mean) / own_spread


def plain_detector(module: nn.Module) -> nn.Module:
    """``module`` itself, or a one-stage detector of torchvision as :class:`OneStageDetector`."""
    if "torchvision.models.detection" not in sys.modules:
        return module
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.ssd import SSD

    return OneStageDetector(module) if isinstance(module, FCOS | RetinaNet | SSD) else module


def background(name: str) -> int:
    """Columns beside those of the classes, in the head of torchvision's detector ``name``."""
    return int(name.startswith("ssd"))
