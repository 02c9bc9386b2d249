"""Convolutions with a computed weight become plain ones where that is all that they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit as pk
from prunekit.networks.build import build
from prunekit.networks.folding import folded_blocks
from prunekit.networks.standardised import plain_convolution


def standard(weight: Tensor) -> Tensor:
    spread = weight.std((1, 2, 3), keepdim=True) + 1e-6
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / spread


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = standard(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(Standardised):
    """With a gain of its own for every channel."""

    def __init__(self, *args: int, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = standard(self.weight) * self.gain
        return F.conv2d(x, weight, self.bias, padding=self.padding[0])


class Padded(Standardised):
    """What it convolves is not its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class ByInput(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias, padding=self.padding)


class Followed(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Counting(Standardised):
    """It remembers something of every input."""

    def __init__(self, *args: int, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def network(kind: type[nn.Conv2d]) -> nn.Sequential:
    torch.manual_seed(0)
    body = [kind(3, 16, 3, padding=1), nn.ReLU(), kind(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [Standardised, Scaled])
def test_they_are_folded_compared_and_pruned_exactly(kind: type[nn.Conv2d]) -> None:
    model = network(kind)
    folded = pk.reparameterize(model, X)
    assert folded_blocks(folded) == ("0", "2")
    assert [type(folded[n]) for n in (0, 2)] == [nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(folded(X), model(X))
    graph = pk.trace(folded, X)
    assert graph.prunable_macs_share() == 1.0
    plan = pk.ChannelPlan.from_keep(graph, {"0": [1, 4, 5], "2": [0, 2, 9, 15]})
    small = pk.slim(folded, plan)
    masked = network(kind)
    with torch.no_grad():  # channels that no one reads
        plain = plain_convolution(masked[2])
        assert plain is not None
        plain.weight[:, [c for c in range(16) if c not in (1, 4, 5)]] = 0
        masked[2] = plain
        masked[6].weight[:, [c for c in range(16) if c not in (0, 2, 9, 15)]] = 0
    torch.testing.assert_close(small(X), masked(X), rtol=1e-5, atol=1e-6)
    assert pk.reparameterize(folded, X) is folded


def test_all_of_a_convolution_carries_over() -> None:
    module = Standardised(8, 4, (3, 1), stride=(2, 1), dilation=2, groups=2, bias=False).eval()
    module.weight.requires_grad_(False)
    plain = plain_convolution(module)
    assert plain is not None
    assert str(plain) == str(nn.Conv2d(8, 4, (3, 1), (2, 1), 0, 2, 2, bias=False))
    assert not plain.weight.requires_grad
    x = torch.randn(1, 8, 9, 9)
    torch.testing.assert_close(plain(x), module(x), rtol=0, atol=0)
    assert module.train().training


@pytest.mark.parametrize("kind", [Padded, ByInput, Followed, Own, Counting, nn.Conv2d])
def test_what_is_more_than_that_stays(kind: type[nn.Conv2d]) -> None:
    model = network(kind)
    assert pk.reparameterize(model) is model


def test_imitated_quantisation_stays() -> None:
    module = Standardised(3, 4, 3)
    module.weight_fake_quant = nn.Identity()
    assert plain_convolution(module) is None


def test_a_folded_one_is_saved_and_loaded(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
        "class Std(nn.Conv2d):\n    def forward(self, x):\n"
        "        w = self.weight\n        w = w - w.mean((1, 2, 3), keepdim=True)\n"
        "        return F.conv2d(x, w, self.bias, self.stride, self.padding)\n"
        "def net():\n    return nn.Sequential(Std(3, 16, 3), nn.ReLU(), Std(16, 4, 3))\n"
    )
    base = f"{tmp_path / 'mine.py'}:net"
    folded = pk.reparameterize(build(base).module.eval(), X)
    plan = pk.ChannelPlan.random(pk.trace(folded, X), 0.5, 0)
    small = pk.slim(folded, plan)
    pk.save(tmp_path / "run", small, plan, base=base)
    torch.testing.assert_close(pk.load(tmp_path / "run", model=base)(X), small(X), rtol=0, atol=0)
