"""Networks whose layers a runtime has to tell apart."""

import torch
from torch import nn

from prunekit.core.artifact import Artifact


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = None
        if stride != 1:
            self.down = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Residual(nn.Module):
    """As ResNet: residual adds, pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = Block(16, 16, 1)
        self.layer2 = Block(16, 32, 2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(self.pool(torch.relu(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class Concats(nn.Module):
    """As DenseNet: norm and activation after a concat, before the convolution that reads it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 3, 1, 1, bias=False)
        self.norm3, self.out = nn.BatchNorm2d(48), nn.Conv2d(48, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(torch.relu(self.norm2(x)))], 1)
        return self.fc(self.out(torch.relu(self.norm3(x))).mean((2, 3)))


class Mobile(nn.Module):
    """As MobileNet-V3: depthwise convolutions, squeeze and excite."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()),
        )
        self.excite = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.SiLU()),
            *(nn.Conv2d(8, 32, 1), nn.Sigmoid()),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16 * 16, 10))

    def forward(self, x):
        x = self.body(x)
        return self.head(x * self.excite(x))


class Mixer(nn.Module):
    """Linear layers on sequences: exported as MatMul, whose weights may lose their names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return (x + self.down(nn.functional.gelu(self.up(self.norm(x))))).mean(1)


NETS = {"residual": Residual, "concats": Concats, "mobile": Mobile, "mixer": Mixer}


def layers(module):
    return {n for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def of_module(module, **facts):
    shapes = {"input": (-1, 3, 32, 32)}
    return Artifact("live", "module", input_shapes=shapes, module=module, **facts)
