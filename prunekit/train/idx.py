"""Images and labels in idx files, as MNIST and Fashion-MNIST are published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.support.errors import DataError, first_line

__all__ = ["has_idx", "read_idx", "read_pair"]

_BYTES = 8
"""The type of unsigned bytes in the third byte of a file."""


def has_idx(folder: Path) -> bool:
    """Whether the training images lie in ``folder`` itself."""
    return _file(folder, "train-images-idx3-ubyte") is not None


def read_pair(folder: Path, *, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, h, w) and labels (N,) of the training or the test part in ``folder``."""
    part = "train" if train else "t10k"
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    paths = [_file(folder, name) for name in names]
    for name, path in zip(names, paths, strict=True):
        if path is None:
            raise DataError(f"{folder} has no {name} or {name}.gz; put the original file there")
    images, labels = (read_idx(path) for path in paths if path is not None)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{paths[0]} has {len(images)} entries of {images.ndim - 1} axes and {paths[1]} has "
            f"{len(labels)} of {labels.ndim - 1}; images (N, h, w) and as many labels are needed"
        )
    return images, labels


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of an idx file, gzipped or not, in the shape that it says it has.

    Raises DataError for a file that is damaged or of another kind.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged ({first_line(error)}); fetch it again") from error
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != bytes((0, 0, _BYTES)) or len(content) < 4 + 4 * axes:
        raise DataError(f"{path} is not an idx file of bytes; fetch the original file")
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    start = 4 + 4 * axes
    if len(content) - start != math.prod(shape):
        sizes = "x".join(map(str, shape))
        raise DataError(
            f"{path} should hold {sizes} bytes and has {len(content) - start}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _file(folder: Path, name: str) -> Path | None:
    """A file as published or unpacked; older copies have a dot for the last dash of the stem."""
    dotted = name.replace("-idx", ".idx")
    candidates = [folder / f"{stem}{end}" for stem in (name, dotted) for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
