"""A small network of blocks with three branches each, in the forms that libraries write."""

import torch
import torch.nn.functional as F
from torch import nn


class Rep(nn.Module):
    """conv3x3-BN + conv1x1-BN + BN, which fold into one convolution; leaves what folding leaves."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.dense = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.point = nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(cout), nn.BatchNorm2d(cout)])
        self.skip = nn.BatchNorm2d(cout) if cin == cout and stride == 1 else None
        self.gate = nn.Parameter(torch.ones(cout, 1, 1))

    def forward(self, x):
        if hasattr(self, "merged"):
            return torch.relu(self.gate * self.merged(x))
        out = self.norms[0](self.dense(x)) + self.norms[1](self.point(x))
        if self.skip is not None:
            out = out + self.skip(x)
        return torch.relu(self.gate * out)

    def branches(self):
        pointwise = F.pad(self.point.weight, [1, 1, 1, 1])
        parts = [(self.dense.weight, self.norms[0]), (pointwise, self.norms[1])]
        if self.skip is not None:
            self.id_tensor = torch.zeros_like(self.dense.weight)
            nn.init.dirac_(self.id_tensor)
            parts.append((self.id_tensor, self.skip))
        return parts

    def merge(self):
        kernel, bias = 0, 0
        for weight, norm in self.branches():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            kernel = kernel + weight * scale.reshape(-1, 1, 1, 1)
            bias = bias + norm.bias - norm.running_mean * scale
        conv = self.dense
        merged = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1)
        merged.weight.data, merged.bias.data = kernel, bias
        return merged

    def switch_to_deploy(self):
        """As in RepVGG's own code: gradients off everywhere, an unused tensor left over."""
        self.merged = self.merge()
        for parameter in self.parameters():
            parameter.detach_()
        del self.dense, self.point, self.norms, self.skip


class Timm(Rep):
    """Fails when it is folded again, as some of FastViT's blocks do, and in training mode."""

    switch_to_deploy = None

    def reparameterize(self):
        if self.training:
            raise RuntimeError("fold in evaluation mode")
        Rep.switch_to_deploy(self)


class Ultralytics(Rep):
    """Has another forward for the folded block, which the caller is to set."""

    switch_to_deploy = None

    def forward(self, x):
        out = self.norms[0](self.dense(x)) + self.norms[1](self.point(x))
        if self.skip is not None:
            out = out + self.skip(x)
        return torch.relu(self.gate * out)

    def forward_fuse(self, x):
        return torch.relu(self.gate * self.merged(x))

    def fuse_convs(self):
        Rep.switch_to_deploy(self)


class Returned(Rep):
    """Hands back the folded layer and leaves itself as it is, as RepViT's blocks do."""

    switch_to_deploy = None

    def forward(self, x):
        out = self.norms[0](self.dense(x)) + self.norms[1](self.point(x))
        return out if self.skip is None else out + self.skip(x)

    def fuse(self):
        return self.merge()


class Broken(Rep):
    def switch_to_deploy(self):
        raise ValueError("no kernel\nsecond line")


class Wrong(Rep):
    """Forgets the identity branch."""

    def branches(self):
        return super().branches()[:2]


class Network(nn.Module):
    def __init__(self, block=Rep, num_classes=10, in_channels=1, width=32):
        super().__init__()
        self.stem = block(in_channels, width, 2)
        self.body = nn.Sequential(block(width, width), block(width, width))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def lively(model):
    """Norms away from the values they start at, where a wrong fold would be right."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.3, generator=generator)
    return model


def net(num_classes=10, in_channels=1):
    torch.manual_seed(0)
    return lively(Network(Rep, num_classes, in_channels))


def broken(num_classes=10):
    return Network(Broken, num_classes)


def wrong(num_classes=10):
    return lively(Network(Wrong, num_classes))
