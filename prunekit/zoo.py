"""Small networks for small images (8x8 and larger), for trials, tests and benchmarks.

Every residual stage starts with a projection shortcut, so that each stage's channels are a group
of their own, and every network ends in global pooling, so that any image size fits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from prunekit.support.errors import ModelError

__all__ = [
    "DETECTORS",
    "ZOO",
    "build",
    "mobilenet_v1",
    "resnet8",
    "resnet20",
    "resnet20_w32",
    "resnet56",
    "ssd_resnet8",
    "ssd_resnet50",
    "vgg11_bn",
    "wrn22_2",
]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


class _Head(nn.Module):
    """Global average pooling and one linear layer: (N, C, h, w) to (N, classes)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.flatten(self.pool(x)))
        return out


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions, normalised after each; the sum is activated."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class _PreActivationBlock(nn.Module):
    """Normalise, activate, convolve, twice; a projection sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3)
        self.projection = (
            _conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        out: Tensor = y + (x if self.projection is None else self.projection(active))
        return out


class _ResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks, of widths ``base``, 2 and 4 times ``base``."""

    def __init__(self, blocks: int, base: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, base, 3)
        self.bn = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        width = base
        for stage, outputs in enumerate((base, 2 * base, 4 * base)):
            for index in range(blocks):
                layers.append(_BasicBlock(width, outputs, 2 if stage and not index else 1))
                width = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = _Head(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.relu(self.bn(self.conv(x)))))
        return out


class _WideResNet(nn.Module):
    """A stem of 16 channels and three pre-activation stages, 16, 32, 64 times ``widen`` wide."""

    def __init__(self, blocks: int, widen: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = 16
        self.conv = _conv(in_channels, width, 3)
        layers: list[nn.Module] = []
        for stage, base in enumerate((16, 32, 64)):
            outputs = round(base * widen)
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(_PreActivationBlock(width, outputs, stride))
                width = outputs
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.head = _Head(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.relu(self.bn(self.blocks(self.conv(x)))))
        return out


class _Chain(nn.Module):
    """A plain chain of layers and a head."""

    def __init__(self, layers: list[nn.Module], width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = _Head(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def _normalised(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]


def resnet8(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-8 for small images and devices, widths 16, 32, 64 (MLPerf Tiny, arXiv 2106.07597)."""
    return _ResNet(1, 16, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 for small images, widths 16, 32, 64 (He et al. 2016, section 4.2)."""
    return _ResNet(3, 16, num_classes, in_channels)


def resnet20_w32(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 of twice the width: 32, 64, 128."""
    return _ResNet(3, 32, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56 for small images, widths 16, 32, 64."""
    return _ResNet(9, 16, num_classes, in_channels)


def wrn22_2(num_classes: int = 10, in_channels: int = 3, widen: float = 2) -> nn.Module:
    """Wide ResNet 22-2, pre-activation (Zagoruyko and Komodakis 2016)."""
    return _WideResNet(3, widen, num_classes, in_channels)


def vgg11_bn(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-11 with batch normalisation and a single linear layer; ``width`` scales all widths."""
    layers: list[nn.Module] = []
    inputs = in_channels
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for full in stage:
            outputs = round(width * full)
            layers += _normalised(_conv(inputs, outputs, 3))
            inputs = outputs
        # Rounding up keeps a 1x1 map 1x1, so five pools fit an 8x8 image too.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return _Chain(layers, inputs, num_classes)


def mobilenet_v1(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet v1 with an undivided stem, so that 32x32 images end at 2x2.

    ``width`` scales all widths (the paper's width multiplier).
    """
    inputs = round(width * 32)
    layers = _normalised(_conv(in_channels, inputs, 3))
    steps = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    for full, stride in [*steps, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        outputs = round(width * full)
        layers += _normalised(_conv(inputs, inputs, 3, stride, groups=inputs))
        layers += _normalised(_conv(inputs, outputs, 1))
        inputs = outputs
    return _Chain(layers, inputs, num_classes)


class _Pyramid(nn.Module):
    """Maps of falling size from a chain of stages; the first of them are only passed through."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], widths: list[int]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.out_channels = widths

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        maps = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(number)] = x
        return maps


def _smaller(inputs: int, middle: int, outputs: int) -> nn.Module:
    """Half the size, as SSD's further maps are made."""
    return nn.Sequential(
        *_normalised(_conv(inputs, middle, 1)), *_normalised(_conv(middle, outputs, 3, 2))
    )


def _ssd(backbone: _Pyramid, ratios: list[list[int]], least: float, classes: int) -> nn.Module:
    """Torchvision's SSD around a backbone; ``classes`` without the background."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    boxes = DefaultBoxGenerator(ratios, min_ratio=least, max_ratio=0.9)
    mean, spread = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = (300, 300)  # which its own transform would resize to, and nothing else reads
    network: nn.Module = SSD(backbone, boxes, size, classes + 1, image_mean=mean, image_std=spread)
    return network


def ssd_resnet8(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """SSD on a small residual network, for images of 96 x 96 to 256 x 256 (arXiv 1512.02325).

    Maps at strides 8, 16, 32 and 64, of 64, 128, 128 and 128 channels.
    """
    stem = nn.Sequential(*_normalised(_conv(in_channels, 32, 3, 2)), _BasicBlock(32, 32, 2))
    stages: list[nn.Module] = [
        nn.Sequential(_BasicBlock(32, 64, 2), _BasicBlock(64, 64, 1)),
        nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1)),
        _BasicBlock(128, 128, 2),
        _smaller(128, 64, 128),
    ]
    backbone = _Pyramid(stem, stages, [64, 128, 128, 128])
    _initialise(backbone)
    return _ssd(backbone, [[2], [2, 3], [2, 3], [2]], 0.1, num_classes)


def ssd_resnet50(num_classes: int = 80, in_channels: int = 3) -> nn.Module:
    """SSD512 on ResNet-50 up to its third stage, undivided there (arXiv 1512.02325).

    Maps at strides 8, 16, 32, 64, 128, 256 and 512 of a 512 x 512 image: 1024, 512, 512, and four
    times 256 channels.
    """
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    if in_channels != 3:
        network.conv1 = _conv(in_channels, 64, 7, 2)
    network.layer3[0].conv2.stride = network.layer3[0].downsample[0].stride = (1, 1)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
    stages: list[nn.Module] = [nn.Sequential(network.layer2, network.layer3)]
    widths = [1024, 512, 512, 256, 256, 256, 256]
    for inputs, outputs in pairwise(widths):
        stages.append(_smaller(inputs, outputs // 2, outputs))
        _initialise(stages[-1])
    ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
    return _ssd(_Pyramid(stem, stages, widths), ratios, 0.07, num_classes)


ZOO: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet20_w32": resnet20_w32,
    "resnet56": resnet56,
    "vgg11_bn": vgg11_bn,
    "wrn22_2": wrn22_2,
}


DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "ssd_resnet8": ssd_resnet8,
    "ssd_resnet50": ssd_resnet50,
}
"""Built of torchvision's parts; `prunekit.networks.detectors` makes plain networks of them."""


def build(name: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """The network called ``name``, freshly initialised from torch's generator.

    Raises ModelError for a name that is neither in :data:`ZOO` nor in :data:`DETECTORS`.
    """
    known = {**ZOO, **DETECTORS}
    if name not in known:
        raise ModelError(f"unknown zoo model {name!r}; known: {', '.join(sorted(known))}")
    return known[name](num_classes=num_classes, in_channels=in_channels)
