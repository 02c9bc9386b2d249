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


def glyph_mlp(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Two hidden layers of 512, normalised, on images of 16x16 pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * 256
    for _ in range(2):
        layers += [nn.Linear(inputs, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
        inputs = 512
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


def wrn22_narrow(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Wide ResNet 22-2 at five eighths of its width: 20, 40, 80 channels."""
    return zoo.wrn22_2(num_classes, in_channels, widen=1.25)
