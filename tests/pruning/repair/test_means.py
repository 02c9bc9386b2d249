"""Means through a network by its norms' own parameters, against means of many samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.pruning.repair.means import layer_means


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU()),
        *(nn.GELU("tanh"), nn.LeakyReLU(0.1), nn.Hardtanh(-0.5, 2), nn.Mish(), nn.Tanh()),
    ],
    ids=str,
)
def test_a_gaussian_through_an_activation(activation: nn.Module):
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.3, 1.0, 4.0]))
        norm.bias.copy_(torch.tensor([0.5, -1.0, 5.0]))
    net = nn.Sequential(norm, activation, nn.Conv2d(3, 2, 1)).eval()
    means = layer_means(net, (torch.zeros(1, 3, 4, 4),))["2"]
    samples = torch.randn(1_000_000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        measured = activation(norm(samples)).mean((0, 2, 3))
    torch.testing.assert_close(means.float(), measured, atol=0.012, rtol=0)


def test_a_residual_sum_a_concat_and_a_pool():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.conv, self.fc = nn.Conv2d(8, 2, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = torch.relu(self.a(x))
            total = a + self.b(x)
            pooled = nn.functional.adaptive_avg_pool2d(torch.relu(total), 1)
            return self.conv(torch.cat([a, total], 1)), self.fc(pooled.flatten(1))

    torch.manual_seed(0)
    net = Net().eval()
    for norm in (net.a, net.b):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    means = layer_means(net, (torch.zeros(1, 4, 3, 3),))
    assert set(means) == {"conv", "fc"}
    a = torch.relu(net.a(torch.randn(200_000, 4, 1, 1))).mean((0, 2, 3))
    torch.testing.assert_close(means["conv"][:4].float(), a, atol=0.03, rtol=0)
    torch.testing.assert_close(means["conv"][4:].float(), a + net.b.bias, atol=0.03, rtol=0)


def test_nothing_is_believed_where_it_cannot_be_known():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip
    assert layer_means(net, (torch.zeros(1, 3, 9, 9),)) == {}
