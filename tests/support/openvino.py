"""Networks and targets that OpenVINO is tested with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.core.target import Target
from prunekit.runtimes.openvino.runtime import OpenVino
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    PreActivation,
    Residual,
    Slopes,
    SqueezeExcite,
    Tokens,
)

FP32, BF16 = Target("openvino"), Target("openvino", precision="bf16")


class Grouped(nn.Module):
    """Transposed and grouped convolutions, pooling, softmax, a layer called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.fc = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = self.grouped(torch.relu(self.twice(torch.relu(self.twice(x)))))
        return self.fc(nn.functional.avg_pool2d(self.up(x), 8).flatten(1)).softmax(1)


NETS = {
    net.__name__: net
    for net in (
        *(Concat, Depthwise, Flatten, Grouped, PreActivation, Residual, Slopes),
        *(SqueezeExcite, Tokens),
    )
}
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def layers(module):
    return {name for name, layer in module.named_modules() if isinstance(layer, WEIGHTED)}


def relative(expected, found):
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def needs_bf16():
    if reason := OpenVino().unavailable(BF16):
        pytest.skip(reason)
