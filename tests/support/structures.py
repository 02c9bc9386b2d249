"""Networks of one structure each, and how far tracing may follow them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from support.nets import (
    conv,
    image,
)

OUTPUT = "it is the model's output"


class Chunks(nn.Module):
    """Two halves of the channels take different ways, or meet again."""

    def __init__(self, width=8, gated=False, split=lambda x: x.chunk(2, 1)):
        super().__init__()
        self.gated, self.split, half = gated, split, width // 2
        self.a, self.b, self.c = conv(3, width), conv(half, 6, 1), conv(half, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        left, right = self.split(F.relu(self.a(x)))
        x = self.b(left * right.sigmoid()) if self.gated else self.b(left) + self.c(right)
        return self.fc(F.relu(x).mean((2, 3)))


IMAGE = image()
