"""Blocks that train with branches are folded before anything is traced or timed."""

import torch
from torch import Tensor, nn

import prunekit as pk


class Branches(nn.Module):
    """Trains two convolutions side by side; deployed, they are one."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(cin, cout, 3, padding=1)
        self.narrow = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x)

    def fuse(self) -> nn.Module:
        one = nn.Conv2d(self.wide.in_channels, self.wide.out_channels, 3, padding=1)
        padded = nn.functional.pad(self.narrow.weight, (1, 1, 1, 1))
        one.weight.data = self.wide.weight.data + padded.data
        one.bias.data = self.wide.bias.data + self.narrow.bias.data
        return one


torch.manual_seed(0)
model = nn.Sequential(Branches(3, 16), nn.ReLU(), Branches(16, 8)).eval()
example = torch.randn(1, 3, 8, 8)
folded = pk.reparameterize(model, example)  # each block is compared with what it computed
print(folded)
print("groups:", ", ".join(group.id for group in pk.trace(folded, example).groups))
