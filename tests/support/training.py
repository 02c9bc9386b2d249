"""Tiny trainings: a network, a rule with a state, data told apart by stripes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunekit.train import TrainConfig
from prunekit.train.rule import NoRule

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05, device="cpu")


class Tiny(nn.Module):
    """Convolution, normalisation, dropout: all that a resumed training could get wrong."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))
        return out


class Mask(NoRule):
    """A rule with a state: it moves a mask over the first layer's filters every few steps."""

    def __init__(self) -> None:
        self.mask = torch.ones(4)
        self.turns = 0
        self.steps: list[int] = []

    def after_backward(self, model: Tiny, step: int) -> None:
        assert model.conv.weight.grad is not None
        self.steps.append(step)

    def after_step(self, model: Tiny, optimizer: torch.optim.Optimizer, step: int) -> None:
        assert isinstance(optimizer, torch.optim.SGD)
        if step % 4 == 0:
            self.turns += 1
            self.mask = torch.ones(4)
            self.mask[self.turns % 4] = 0
        with torch.no_grad():
            model.conv.weight.mul_(self.mask[:, None, None, None])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mask": self.mask}, {"turns": self.turns}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.mask, self.turns = tensors["mask"], facts["turns"]


def tiny(seed: int = 0, classes: int = 3) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(classes)


def stripes(count: int, seed: int) -> TensorDataset:
    """Three classes that a small net tells apart: stripes across, stripes down, noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return TensorDataset(images, labels)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
