"""Trainings by IEE that are stopped and taken up again."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

import prunekit as pk
from prunekit.train import Data, TrainConfig
from support.nets import Residual, image, randomise


def some_data(count=64):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (torch.arange(count) % 2)
    images[labels > 1, 0] += 1
    return Data(
        TensorDataset(images, labels), TensorDataset(images[:20], labels[:20]), 4, (3, 8, 8), "some"
    )


CONFIG = TrainConfig(epochs=6, batch_size=16, lr=0.05, device="cpu")
EPOCHS = {"warmup": 1, "estimate": 3, "improve": 3, "explore": 3, "until": 0.9, "omega": 0.4}
"""Of four steps each end in improve, explore, estimate, explore, improve and the last stage."""


def fitting(make=Residual, **options):
    model = randomise(make())
    graph = pk.trace(model, image())
    schedule = pk.IEESchedule(24, **{**EPOCHS, **options})
    return model, pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
