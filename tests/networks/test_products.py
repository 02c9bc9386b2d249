"""Products watched while a network runs: patches times weights are what the layer gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit.networks.products import Survey, Watch


class Taken(Watch):
    """Keeps every product with its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.all: list = []

    def product(self, product, compute):
        self.all.append((product, compute()))
        return self.all[-1][1]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (5, 6)),
        (nn.Linear(6, 4, bias=False), (5, 3, 2, 6)),
        (nn.Conv1d(6, 4, 3, padding=2, dilation=2), (5, 6, 9)),
        (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (5, 6, 9, 8)),
        (nn.Conv2d(6, 4, (3, 5), padding="same", dilation=(1, 2)), (5, 6, 9, 8)),
        (nn.Conv2d(6, 4, 3, padding="valid", groups=2), (5, 6, 9, 8)),
        (nn.Conv2d(6, 12, 3, groups=6, padding=1), (5, 6, 9, 8)),
        (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (5, 6, 9, 8)),
        (nn.Conv3d(6, 4, 2, stride=2), (2, 6, 4, 5, 6)),
        (nn.Conv2d(6, 4, 3), (6, 9, 8)),
    ],
)
def test_patches_times_weights_are_the_outputs(layer: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    with torch.no_grad(), Taken(layer) as taken:
        layer(torch.randn(shape))
    ((product, output),) = taken.all
    rows = product.rows_of(output)
    assert product.positions == len(rows)
    chosen = torch.randperm(len(rows))[: max(3, len(rows) // 2)]
    patches = product.patches(chosen)
    weight = product.weight.reshape(product.groups, -1, product.features)
    made = torch.einsum("ngf,gof->ngo", patches, weight).flatten(1)
    if product.bias is not None:
        made = made + product.bias
    torch.testing.assert_close(made, rows[chosen], atol=1e-5, rtol=1e-5)


def test_a_survey_knows_who_reads_a_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.again = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.bn1(self.first(x)))
            y = self.second(x)
            return self.again(self.again(self.bn2(y) + y))

    net = Net().eval()
    with torch.no_grad(), Survey(net) as survey:
        net(torch.zeros(2, 3, 4, 4))
    assert survey.calls == {"first": 1, "second": 1, "again": 2}
    assert survey.norm_after("first") == "bn1"
    assert survey.norm_after("second") is None  # the sum reads it too
    assert survey.norm_after("again") is None
    assert survey.bytes == 2 * 2 * 3 * 16 * 4
