"""Pictures with targets that change as they do: opened, augmented together, resized, normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunekit.support.errors import DataError
from prunekit.train.folder import IMAGE_SUFFIXES, normalising
from prunekit.train.images import Shape, eight_bits

if TYPE_CHECKING:
    from PIL import Image

Change = Callable[..., Any]
"""A transform of torchvision's, of a picture alone or with what belongs to it."""


class Pictures(Dataset[tuple[Tensor, Any]]):
    """Files and their targets; ``transform`` takes both, as torchvision's v2 transforms do.

    ``target_of`` makes of an entry what is transformed, given the picture; ``finish`` makes of the
    transformed target what a sample has.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        entries: Sequence[Any],
        classes: Sequence[str] | None,
        transform: Change,
        *,
        grey: bool,
        target_of: Callable[[Any, Image.Image], Any],
        finish: Callable[[Any], Any] = lambda target: target,
    ) -> None:
        self.paths = list(paths)
        self.entries = list(entries)
        if classes is not None:
            self.classes = list(classes)
        self.transform = transform
        self.mode = "L" if grey else "RGB"
        self.target_of = target_of
        self.finish = finish

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        picture = opened(self.paths[index], self.mode)
        target = self.target_of(self.entries[index], picture)
        picture, target = self.transform(picture, target)
        return picture, self.finish(target)


def opened(path: Path, mode: str) -> Image.Image:
    """A picture as grey or colour; DataError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return eight_bits(image).convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read image {path} ({error}); remove or replace it") from error


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, from the head of the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read image {path} ({error}); remove or replace it") from error


def check_channels(shape: Shape, folder: Path) -> None:
    """Raise DataError for inputs that pictures do not have the channels of."""
    if shape[0] not in (1, 3):
        raise DataError(
            f"images in {folder} have 1 or 3 channels, not {shape[0]}; use 1 or 3 in --input"
        )


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, hidden ones left out, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def resized(shape: Shape) -> list[Any]:
    """A picture and what belongs to it at the network's size, as normalised floats."""
    from torchvision.transforms import v2

    return [v2.Resize(shape[1:]), *normalising(shape)]


def composed(parts: Sequence[Any]) -> Change:
    """One transform of several."""
    from torchvision.transforms import v2

    change: Change = v2.Compose(list(parts))
    return change


def whole_numbers(values: Any) -> Tensor:
    """As torch's usual integers."""
    return torch.as_tensor(values, dtype=torch.int64)
