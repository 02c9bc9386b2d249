"""Narrow forms of the zoo's widest networks, so that a benchmark of hundreds of trainings fits."""

from __future__ import annotations

from torch import nn

from prunekit import zoo


def vgg11_bn_half(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-11 at half width: 32 to 256 channels."""
    return zoo.vgg11_bn(num_classes, in_channels, width=0.5)


def mobilenet_v1_half(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """MobileNet v1 at half width: 16 to 512 channels."""
    return zoo.mobilenet_v1(num_classes, in_channels, width=0.5)
