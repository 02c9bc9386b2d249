"""Networks, batches and groups by hand that criteria are scored on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.core.graph import ChannelGroup, Member
from prunekit.core.role import Role
from prunekit.support.registry import criteria


def loss_fn(model, batch):
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def batches(count=3, channels=3):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(4, channels, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(0, 4, (4,), generator=generator),
        )
        for _ in range(count)
    ]


# --- values by hand


def linear(rows):
    """A linear layer with the given filters."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def norm(gammas):
    layer = nn.BatchNorm1d(len(gammas))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(gammas))
    return layer


def channels_of(*names, roles=None, positions=None):
    """A group whose channels lie at the same positions of every module named."""
    index = np.array([[0], [1], [2]] if positions is None else positions)
    members = tuple(
        Member(name, Role.parse(role), index)
        for name, role in zip(names, roles or ["out"] * len(names), strict=True)
    )
    return ChannelGroup("g", len(index), 1, 1, True, members)


def scored(criterion, group, modules):
    """Scores of one group, normalised."""
    with torch.no_grad():
        found = criterion.channel_scores(group, modules).double().numpy()
    return criterion.normalised(found)


FIRST = [[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]]
SECOND = [[0.0, 2.0], [0.0, 0.0], [6.0, 8.0]]
GRADIENT = [[1.0, -1.0], [5.0, 2.0], [-0.5, 7.0]]

# --- what holds for all

NAMES = [
    "bn_scale",
    "fpgm",
    "lamp",
    "magnitude",
    "magnitude_l1",
    "random",
    "taylor",
    "taylor_weight",
]
NO_DATA = [name for name in NAMES if not name.startswith("taylor")]


def while_training() -> list[str]:
    """The criteria that score a network while it trains: those that need no inputs of layers."""
    return [
        n for n in sorted(criteria.names()) if not getattr(criteria.get(n)(), "needs_inputs", 0)
    ]
