"""The whole job on your own model and data: one factory for each, and one command."""

import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.cli.main import run


def net(num_classes: int = 2) -> nn.Module:
    """The dense network; `num_classes` and `in_channels` may be asked for."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def data(input_shape: tuple[int, int, int], seed: int) -> tuple[TensorDataset, TensorDataset]:
    """A training and a validation set of (image, label) pairs; bright images are class 1."""
    images = torch.randn(256, *input_shape, generator=torch.Generator().manual_seed(seed))
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    return TensorDataset(images[:192], labels[:192]), TensorDataset(images[192:], labels[192:])


if __name__ == "__main__":
    command = (
        f"prune {__file__}:net --data {__file__}:data --input 1x1x12x12 --from-scratch "
        "--target fake --target-latency 60% --epochs 2 --profile-nets 4 -o mine -q"
    )
    sys.exit(run(command.split()))
