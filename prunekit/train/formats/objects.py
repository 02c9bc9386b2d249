"""Pictures with boxes: what COCO, VOC and YOLO files have in common, and what makes one wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.support.errors import DataError
from prunekit.train.folder import verify
from prunekit.train.formats.pictures import (
    Pictures,
    check_channels,
    composed,
    resized,
    whole_numbers,
)
from prunekit.train.images import Shape

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
SLACK = 1.0
"""Pixels that a box may reach out of its image, as rounded files have it; it is cut there."""


@dataclass
class Objects:
    """The objects of one picture; ``ignored`` ones count neither as right nor as missed."""

    path: Path
    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)

    def add(self, box: Box, label: int, where: str, *, ignored: bool = False) -> None:
        """One more; DataError for a box outside of the picture, or without an area."""
        left, top, right, bottom = box
        width, height = self.size
        if not all(map(_is_number, box)):
            raise DataError(f"{where}: the box {_text(box)} is not of numbers; repair it")
        if right <= left or bottom <= top:
            raise DataError(f"{where}: the box {_text(box)} has no area; repair or remove it")
        if min(left, top) < -SLACK or right > width + SLACK or bottom > height + SLACK:
            raise DataError(
                f"{where}: the box {_text(box)} is outside of its image, {self.path.name} of "
                f"{width} x {height}; repair or remove it"
            )
        inside = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        self.boxes.append(inside)
        self.labels.append(label)
        self.ignored.append(ignored)


def _is_number(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def object_sets(
    folder: Path, shape: Shape, classes: Sequence[str], parts: tuple[list[Objects], list[Objects]]
) -> tuple[Pictures, Pictures, int]:
    """Training and validation set of these objects, at the network's size.

    A sample is a picture and ``boxes``, ``labels`` and ``iscrowd``; ignored objects are left out
    of training.
    """
    check_channels(shape, folder)
    for part, name in zip(parts, ("training", "validation"), strict=True):
        if not part:
            raise DataError(f"the {name} set of {folder} has no images; add some")
    if not any(objects.labels for objects in parts[0]):
        raise DataError(f"the training set of {folder} has no objects; check its annotations")
    verify([objects.path for part in parts for objects in part], folder)
    train, val = (
        Pictures(
            [objects.path for objects in part],
            part,
            classes,
            composed([*changes, *resized(shape)]),
            grey=shape[0] == 1,
            target_of=target_of,
            finish=_plain,
        )
        for part, changes, target_of in (
            (parts[0], _augmenting(), _counted),
            (parts[1], [], _all),
        )
    )
    return train, val, len(classes)


def _augmenting() -> list[Any]:
    """As SSD is trained: crops, mirrored half of the time; boxes that nothing is left of go."""
    from torchvision.transforms import v2

    sane = v2.SanitizeBoundingBoxes(labels_getter=_labels)
    return [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), sane]


def _labels(sample: Any) -> Any:
    return sample[1]["labels"]


def _counted(objects: Objects, picture: Image.Image) -> dict[str, Any]:
    kept = [i for i, ignored in enumerate(objects.ignored) if not ignored]
    return _target(objects, picture, kept)


def _all(objects: Objects, picture: Image.Image) -> dict[str, Any]:
    return _target(objects, picture, list(range(len(objects.labels))))


def _target(objects: Objects, picture: Image.Image, kept: list[int]) -> dict[str, Any]:
    from torchvision import tv_tensors

    boxes = torch.tensor([objects.boxes[i] for i in kept], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(
            boxes, format="XYXY", canvas_size=(picture.height, picture.width)
        ),
        "labels": whole_numbers([objects.labels[i] for i in kept]),
        "iscrowd": whole_numbers([objects.ignored[i] for i in kept]),
    }


def _plain(target: dict[str, Any]) -> dict[str, Any]:
    labels = target["labels"]
    crowd = target["iscrowd"] if len(target["iscrowd"]) == len(labels) else torch.zeros_like(labels)
    return {
        "boxes": target["boxes"].as_subclass(torch.Tensor),
        "labels": labels.as_subclass(torch.Tensor),
        "iscrowd": crowd.as_subclass(torch.Tensor),
    }
