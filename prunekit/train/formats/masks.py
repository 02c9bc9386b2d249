"""``segmentation:PATH``: images/ and masks/ of the same names, a class for each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prunekit.support.errors import DataError
from prunekit.support.progress import track
from prunekit.train.folder import verify
from prunekit.train.formats.pictures import (
    Pictures,
    check_channels,
    composed,
    pictures_in,
    resized,
    size_of,
)
from prunekit.train.images import Shape

if TYPE_CHECKING:
    from PIL import Image

VOID = 255
"""Pixels that do not count."""
SHARE = 0.2
"""Of the images without a split: what is held out."""

Pair = tuple[Path, Path]
"""A picture and its mask."""


def open_masks(path: Path, shape: Shape, seed: int) -> tuple[Pictures, Pictures, int]:
    """Both sets and the number of classes: of classes.txt, or one more than the largest number.

    ``images/train`` and ``images/val``, or all in ``images``, of which a fifth is held out by
    ``seed``. Masks are PNG files of class numbers, grey or with a palette.
    """
    check_channels(shape, path)
    parts = _parts(path, seed)
    pairs = [pair for part in parts for pair in part]
    verify([picture for picture, _ in pairs], path)
    names, largest = _names(path), 0
    for picture, mask in track(pairs, f"looking through the masks in {path}", len(pairs)):
        largest = max(largest, _checked(picture, mask, names))
    classes = names or [f"class {number}" for number in range(max(2, largest + 1))]
    train, val = (
        Pictures(
            [picture for picture, _ in part],
            [mask for _, mask in part],
            classes,
            composed([*changes, *resized(shape)]),
            grey=shape[0] == 1,
            target_of=_mask,
            finish=lambda mask: mask.as_subclass(torch.Tensor).long(),
        )
        for part, changes in zip(parts, (_augmenting(shape), []), strict=True)
    )
    return train, val, len(classes)


def _augmenting(shape: Shape) -> list[Any]:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(shape[1:], scale=(0.5, 1.0), ratio=(1.0, 1.0))
    return [crop, v2.RandomHorizontalFlip()]


def _parts(path: Path, seed: int) -> tuple[list[Pair], list[Pair]]:
    images, masks = path / "images", path / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; pictures lie in images/, their masks in masks/")
    if (images / "train").is_dir() or (images / "val").is_dir():
        train, val = (_pairs(images / part, masks / part) for part in ("train", "val"))
        return train, val
    pairs = _pairs(images, masks)
    if len(pairs) < 2:
        raise DataError(f"{images} has {len(pairs)} images; two are needed at least")
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = max(1, round(SHARE * len(pairs)))
    held_out = {int(number) for number in order[:count]}
    return (
        [pair for number, pair in enumerate(pairs) if number not in held_out],
        [pairs[number] for number in sorted(held_out)],
    )


def _pairs(images: Path, masks: Path) -> list[Pair]:
    if not images.is_dir():
        raise DataError(f"no folder {images}; add it, or put all images into {images.parent}")
    pairs = [(picture, masks / f"{picture.stem}.png") for picture in pictures_in(images)]
    if not pairs:
        raise DataError(f"no images in {images}; add some")
    for picture, mask in pairs:
        if not mask.is_file():
            raise DataError(f"no mask {mask} for the image {picture}; add it")
    return pairs


def _names(path: Path) -> list[str]:
    """The lines of classes.txt; none without the file."""
    file = path / "classes.txt"
    if not file.is_file():
        return []
    return [line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def _checked(picture: Path, mask: Path, names: list[str]) -> int:
    """The largest class in a mask, which fits its picture and the names."""
    numbers = _numbers(mask)
    width, height = size_of(picture)
    if numbers.shape != (height, width):
        raise DataError(
            f"the mask {mask} is {numbers.shape[1]} x {numbers.shape[0]} and its image "
            f"{picture.name} {width} x {height}; make them alike"
        )
    counted = numbers[numbers != VOID]
    largest = int(counted.max()) if counted.size else 0
    if names and largest >= len(names):
        raise DataError(
            f"the mask {mask} has the class {largest}, and classes.txt has {len(names)} names"
        )
    return largest


def _numbers(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            numbers = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read mask {path} ({error}); remove or replace it") from error
    if numbers.ndim != 2:
        raise DataError(f"the mask {path} is in colour; a class number for each pixel is needed")
    return numbers


def _mask(path: Path, picture: Image.Image) -> Any:
    from torchvision import tv_tensors

    del picture
    return tv_tensors.Mask(torch.from_numpy(_numbers(path).astype(np.int64)))
