"""A task of one's own: angles, which a plain regression gets wrong where they wrap around."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunekit.core.run_folder import REPORT
from prunekit.pipeline.job import set_up
from prunekit.pipeline.prune import prune
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.tasks import Metric, Task


class Angle(Task):
    """A direction in degrees, from two outputs: its cosine and its sine."""

    name = "angle"
    metrics = (Metric("degrees", "mean error", "degrees", higher_is_better=False),)

    def criterion(self, outputs, targets):
        """The squared distance on the circle."""
        radians = targets.float().deg2rad()
        return nn.functional.mse_loss(outputs, torch.stack([radians.cos(), radians.sin()], 1))

    def scorer(self, *, brief=False, shared=False):
        """The mean error, over all batches."""
        return MeanError()


class MeanError:
    """Degrees between what was given and what is right, the short way round."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, outputs, targets):
        """Count one batch."""
        given = torch.atan2(outputs[:, 1], outputs[:, 0]).rad2deg()
        apart = (given.cpu() - targets.cpu() + 180) % 360 - 180
        self.total, self.count = self.total + float(apart.abs().sum()), self.count + len(apart)

    def compute(self):
        """The mean, by the metric's key."""
        return {"degrees": self.total / self.count}


def angle():
    """What `--task` names."""
    return Angle()


def bars(input_shape, seed):
    """Pictures of a half-plane's edge, and the direction it faces."""
    generator = torch.Generator().manual_seed(seed)
    degrees = torch.rand(192, generator=generator) * 360 - 180
    down, across = torch.meshgrid(*2 * [torch.linspace(-1, 1, input_shape[-1])], indexing="ij")
    turned = degrees.deg2rad()[:, None, None]
    images = (across * turned.cos() + down * turned.sin() > 0).float()[:, None]
    return TensorDataset(images[:128], degrees[:128]), TensorDataset(images[128:], degrees[128:])


def net():
    """A small network with two outputs."""
    layers = [nn.Conv2d(1, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2))


if __name__ == "__main__":
    here = str(Path(__file__).resolve())
    recipe = Recipe(
        model=f"{here}:net",
        data=f"{here}:bars",
        task=f"{here}:angle",
        input="1x1x16x16",
        from_scratch=True,
        epochs=8,
        lr=0.02,
        target="fake:cpu",
        target_latency="60%",
    )
    report = prune(set_up(recipe), Path("angles"))
    dense, pruned = report.accuracy.dense, report.accuracy.pruned
    print(f"error {dense:.1f} degrees dense, {pruned:.1f} pruned; see {Path('angles') / REPORT}")
