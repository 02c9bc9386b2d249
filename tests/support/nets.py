"""Tiny networks that the tests of the core share, each with the structure its name says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


def image(batch=1, channels=3, size=8):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


def randomise(model, seed=0):
    """Weights, norm statistics and slopes away from the values they start at."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like):
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * noise(parameter) + (0.5 if parameter.ndim == 1 else 0))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.copy_(0.2 * noise(module.running_mean))
                module.running_var.copy_(0.5 + noise(module.running_var).abs())
    return model.eval()


def conv(cin, cout, kernel=3, stride=1, groups=1, bias=True):
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Residual(nn.Module):
    """conv-BN-ReLU with a residual block."""

    def __init__(self, width=8, norm=True):
        super().__init__()
        make = nn.BatchNorm2d if norm else (lambda _: nn.Identity())
        self.stem, self.bn = conv(3, width, bias=not norm), make(width)
        self.conv1, self.bn1 = conv(width, width, bias=not norm), make(width)
        self.conv2, self.bn2 = conv(width, width, bias=not norm), make(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActivation(Residual):
    """Norms in front of the convolutions, as in ResNet v2."""

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn1(self.conv1(F.relu(self.bn(x))))))
        return self.fc(F.relu(self.bn2(x)).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self, width=8, multiplier=1):
        super().__init__()
        wide = width * multiplier
        self.conv, self.bn = conv(3, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, wide, 3, padding=1, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.point, self.last = conv(wide, 6, 1), conv(6, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu6(self.bn(self.conv(x)))
        x = F.relu6(self.bn1(self.depth(x)))
        return self.fc(F.relu(self.last(F.relu(self.point(x)))).mean((2, 3)))


class Concat(nn.Module):
    """A concatenation with a norm of its own, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 6)
        self.bn, self.c = nn.BatchNorm2d(14), conv(14, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat([x, self.b(x)], 1)
        return self.fc(F.relu(self.c(F.relu(self.bn(x)))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, linear=False):
        super().__init__()
        self.linear = linear
        self.a = conv(3, 8)
        self.down = nn.Linear(8, 4) if linear else conv(8, 4, 1)
        self.up = nn.Linear(4, 8) if linear else conv(4, 8, 1)
        self.c, self.fc = conv(8, 5, 1), nn.Linear(5, 4)

    def forward(self, x):
        x = F.hardswish(self.a(x))
        if self.linear:
            gate = self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]
        else:
            gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.fc(F.relu(self.c(x * gate)).mean((2, 3)))


class Flatten(nn.Module):
    """Every channel of the convolution is sixteen inputs of the linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.f, self.fc = conv(3, 8), nn.Linear(8 * 16, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(F.relu(self.f(F.max_pool2d(F.relu(self.a(x)), 2).flatten(1))))


class Slopes(nn.Module):
    """PReLU with a slope per channel, and with one for all."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.c, self.act2 = conv(3, 8), nn.PReLU(8), conv(8, 5, 1), nn.PReLU()
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(self.act2(self.c(self.act(self.a(x)))).mean((2, 3)))


class Tokens(nn.Module):
    """Linear layers over (batch, tokens, features)."""

    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12, bias=bias), nn.Linear(12, 9, bias=bias)
        self.c = nn.Linear(9, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.gelu(self.a(x)))).mean(1))


class Plain(nn.Module):
    """Two convolutions and a head: small enough to count by hand."""

    def __init__(self, width=8):
        super().__init__()
        self.c1, self.c2, self.fc = conv(3, width), conv(width, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))
