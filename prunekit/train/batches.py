"""Batches that depend on the seed and the epoch alone, so that an epoch can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from prunekit.support.errors import DataError

__all__ = ["epoch_batches", "loader", "mixed", "size"]


def size(dataset: Dataset[Any]) -> int:
    """The number of samples."""
    return len(cast(Sized, dataset))


def mixed(*numbers: int) -> int:
    """A 32-bit seed from several numbers; near inputs give unrelated seeds."""
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """One rank's share of every batch of one epoch over ``count`` samples.

    An incomplete last batch is left out (another epoch's shuffle brings its samples back), and
    fewer samples than ``batch_size`` make one smaller batch. Raises DataError below two samples
    per process.
    """
    if count < 2 * world:
        processes = f" with {world} processes" if world > 1 else ""
        raise DataError(
            f"the training set has {count} samples; at least {2 * world} are needed{processes}"
        )
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    step = min(batch_size, count // world * world)
    return [order[start : start + step][rank::world] for start in range(0, count - step + 1, step)]


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    shuffle_seed: int | None = None,
    *,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader[Any]:
    """Batches of (images, labels): all in order, or shuffled by ``shuffle_seed`` and ``epoch``.

    Shuffled batches are whole (see :func:`epoch_batches`). With ``world`` above 1 they are the
    share of ``rank``. Without ``shuffle_seed`` the last batch may be smaller. ``pin`` speeds up the
    way to a GPU.
    """
    # Worker processes are seeded from this generator, so their augmentation repeats as well.
    generator = torch.Generator().manual_seed(mixed(shuffle_seed or 0, epoch, rank))
    count = size(dataset)
    if shuffle_seed is None:
        mine = list(range(rank, count, world))
        batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    else:
        batches = epoch_batches(count, batch_size, shuffle_seed, epoch, rank, world)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        generator=generator,
        collate_fn=together,
    )


def together(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """A batch: images, and as many labels, of shape (N,) and of torch's usual integers."""
    try:
        images, labels = default_collate(samples)
    except RuntimeError as error:
        shapes = {"x".join(map(str, image.shape)) for image, _ in samples}
        if len(shapes) < 2:
            raise
        raise DataError(
            f"images of one batch have different shapes: {', '.join(sorted(shapes))}; "
            "resize them alike in the data set"
        ) from error
    if labels.numel() != len(samples):
        raise DataError(
            f"labels have the shape {'x'.join(map(str, labels.shape[1:]))}; "
            "one whole number for each image is needed"
        )
    labels = labels.reshape(-1).long()
    if labels.min() < 0:
        raise DataError(f"a label is {int(labels.min())}; labels count from 0")
    return images, labels
