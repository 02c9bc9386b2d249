"""Batches that depend on the seed and the epoch alone, so that an epoch can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeAlias, cast

import torch
from torch.utils.data import DataLoader, Dataset

from prunekit.support.errors import DataError
from prunekit.tasks.classification import collate_labels

__all__ = ["epoch_batches", "loader", "mixed", "size"]

Collate: TypeAlias = Callable[[Sequence[Any]], Any]
"""Samples to a batch."""


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
    collate: Collate = collate_labels,
) -> DataLoader[Any]:
    """Batches of (inputs, targets): all in order, or shuffled by ``shuffle_seed`` and ``epoch``.

    Shuffled batches are whole (see :func:`epoch_batches`). With ``world`` above 1 they are the
    share of ``rank``. Without ``shuffle_seed`` the last batch may be smaller. ``pin`` speeds up the
    way to a GPU. ``collate`` is the task's; unless given, targets are whole numbers.
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
        collate_fn=collate,
    )
