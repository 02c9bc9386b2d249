"""Sparse trainings that a second process runs as well."""

import torch
from torch.utils.data import TensorDataset

from prunekit.train import Data
from support.sparse_loop import METHODS, Loop

ALL = sorted(METHODS)


def explored(**options):
    """A loop whose first exploration is just over, and what was active in it."""
    loop = Loop("iee", **options).until("explore")
    while loop.sparse.stage == "explore":
        left = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
        loop.step()
    return loop, left


def some_data(count=96):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 4, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (torch.arange(count) % 2)
    images[labels > 1, 0] += 1
    train = TensorDataset(images[:64], labels[:64])
    return Data(train, TensorDataset(images[64:], labels[64:]), 4, (4, 6, 6), "some")
