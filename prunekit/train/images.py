"""Image data sets in memory and in files, their augmentation, and a stratified split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from prunekit.support.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageFiles", "TensorImages", "split"]

Shape = tuple[int, int, int]
# ITU-R BT.601, as Pillow's own conversion to grey.
_LUMA = (0.299, 0.587, 0.114)


class TensorImages(Dataset[tuple[Tensor, int]]):
    """Images held in memory, given out as normalised floats of ``shape`` (channels, height, width).

    ``images`` is (N, c, h, w) with values from 0 to ``peak``; ``shift`` pixels of random
    translation and ``flip`` (mirroring) draw from torch's global generator.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        shape: Shape,
        *,
        peak: float,
        mean: Sequence[float],
        std: Sequence[float],
        shift: tuple[int, int] = (0, 0),
        flip: bool = False,
    ) -> None:
        self.images = images
        self.targets = [int(label) for label in labels]
        self.shape = shape
        self.peak = peak
        self.shift = shift
        self.flip = flip
        self._mean = _channels(torch.tensor(mean).view(-1, 1, 1), shape[0])
        self._std = _channels(torch.tensor(std).view(-1, 1, 1), shape[0])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        channels, height, width = self.shape
        image = _channels(self.images[index].float() / self.peak, channels)
        if image.shape[1:] != (height, width):
            image = F.interpolate(
                image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
            )[0]
        down, right = self.shift
        if down or right:
            image = F.pad(image, (right, right, down, down))
            top = int(torch.randint(0, 2 * down + 1, ()))
            left = int(torch.randint(0, 2 * right + 1, ()))
            image = image[:, top : top + height, left : left + width]
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return (image - self._mean) / self._std, self.targets[index]


def _channels(image: Tensor, channels: int) -> Tensor:
    """``image`` (c, h, w) with ``channels`` channels: grey is repeated, colour is weighted."""
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 3 and channels == 1:
        return (image * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    if image.shape[0] == 1:
        return image.expand(channels, -1, -1)
    raise DataError(
        f"images with {image.shape[0]} channels do not fit an input of {channels} channels; "
        "use 1 or 3 in --input"
    )


class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files with their labels, opened as grey or colour and passed through ``transform``."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        classes: list[str],
        mode: str,
        transform: Any,
    ) -> None:
        self.paths = list(paths)
        self.targets = list(labels)
        self.classes = classes
        self.mode = mode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = eight_bits(image).convert(self.mode)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read image {path} ({error}); remove or replace it") from error
        return self.transform(pixels), self.targets[index]


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey in 8 bits, where Pillow's own conversion would make most of it white."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def split(
    labels: Sequence[int], seed: int, names: Sequence[str] | None = None, share: float = 0.2
) -> tuple[list[int], list[int]]:
    """Indices for training and validation, ``share`` of every class in validation, by ``seed``.

    Raises DataError for a class with a single image.
    """
    rng = np.random.default_rng(seed)
    classes = np.asarray(labels)
    train: list[int] = []
    val: list[int] = []
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        if len(members) < 2:
            name = names[int(label)] if names else label
            raise DataError(
                f"class {name} has a single image, which cannot be split into train and val; "
                "add images or give train and val apart"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        val += members[:count].tolist()
        train += members[count:].tolist()
    return sorted(train), sorted(val)
