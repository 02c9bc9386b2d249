"""Data sets with a name: scikit-learn's digits, and torchvision's sets already on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunekit.networks.vision import torchvision
from prunekit.support.errors import DataError
from prunekit.train.idx import has_idx, read_pair
from prunekit.train.images import Shape, TensorImages, split

__all__ = ["SETS", "open_digits", "open_set"]


@dataclass(frozen=True)
class _Set:
    """A torchvision data set: its class, its statistics, and whether mirroring keeps a label."""

    cls: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    by_split: bool = False  # takes split="train" where the others take train=True
    idx: bool = False  # its original files are read where they lie in the folder itself


SETS = {
    "cifar10": _Set("CIFAR10", 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), flip=True),
    "cifar100": _Set("CIFAR100", 100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), flip=True),
    "fashionmnist": _Set("FashionMNIST", 10, (0.286,), (0.353,), flip=True, idx=True),
    "mnist": _Set("MNIST", 10, (0.131,), (0.308,), idx=True),
    "svhn": _Set("SVHN", 10, (0.438, 0.444, 0.473), (0.198, 0.201, 0.197), by_split=True),
}


def _shift(shape: Shape) -> tuple[int, int]:
    """An eighth of the image each way: a pixel of an 8x8 digit, four of a 32x32 photo."""
    return max(1, shape[1] // 8), max(1, shape[2] // 8)


def open_digits(shape: Shape, seed: int) -> tuple[TensorImages, TensorImages, int]:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, a fifth of every class held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"the digits need scikit-learn ({error}); pip install 'prunekit[digits]'"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None]
    labels = [int(label) for label in bunch.target]
    first, second = split(labels, seed)
    mean, std = float(images[first].mean()) / 16, float(images[first].std()) / 16

    def part(indices: list[int], shift: tuple[int, int]) -> TensorImages:
        chosen = [labels[i] for i in indices]
        return TensorImages(
            images[indices], chosen, shape, peak=16.0, mean=[mean], std=[std], shift=shift
        )

    return part(first, _shift(shape)), part(second, (0, 0)), 10


def open_set(name: str, path: Path, shape: Shape) -> tuple[TensorImages, TensorImages, int]:
    """The training and test parts of a set under ``path``; nothing is downloaded."""
    known = SETS[name]
    if not path.is_dir():
        raise DataError(f"no such folder: {path}")

    def part(train: bool) -> TensorImages:
        pixels, labels = _pixels(known, path, train)
        images = torch.as_tensor(pixels)
        if images.ndim == 3:  # grey: N, h, w
            images = images[:, None]
        elif images.shape[-1] == 3:  # N, h, w, c
            images = images.permute(0, 3, 1, 2)
        return TensorImages(
            images,
            labels,
            shape,
            peak=255.0,
            mean=known.mean,
            std=known.std,
            shift=_shift(shape) if train else (0, 0),
            flip=known.flip and train,
        )

    return part(train=True), part(train=False), known.classes


def _pixels(known: _Set, path: Path, train: bool) -> tuple[NDArray[np.uint8], Sequence[int]]:
    """Images and labels of a part: the original files in ``path`` itself, or torchvision's set."""
    if known.idx and has_idx(path):
        images, labels = read_pair(path, train=train)
        return images.copy(), labels.tolist()
    cls: Callable[..., Any] = getattr(torchvision().datasets, known.cls)
    which = {"split": "train" if train else "test"} if known.by_split else {"train": train}
    try:
        dataset = cls(root=str(path), download=False, **which)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        raise DataError(
            f"no complete {known.cls} in {path}; fetch it with "
            f"torchvision.datasets.{known.cls}({str(path)!r}, download=True)"
        ) from error
    return np.asarray(dataset.data), dataset.labels if known.by_split else dataset.targets
