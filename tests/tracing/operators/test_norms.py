"""Channels under a norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from support.nets import (
    conv,
)
from support.structures import IMAGE


class Cosine(nn.Module):
    """A classifier by cosines, behind features of length one."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.embed = conv(3, 16), conv(16, 24), nn.Linear(24, 12)
        self.classes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x):
        x = F.normalize(self.two(self.one(x)), dim=1)
        x = F.normalize(self.embed(x.mean((2, 3))), dim=1)
        return F.linear(x, F.normalize(self.classes, dim=1))


def test_channels_under_a_norm_can_go():
    assert [group.prunable for group in pk.trace(Cosine(), IMAGE).groups] == [True, True, True]
