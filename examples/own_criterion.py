"""A criterion of your own: here, how often a channel is the largest in its layer's weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit import zoo
from prunekit.core.graph import ChannelGroup
from prunekit.criteria.base import normalise, reduced, weights
from prunekit.support.registry import criteria


@dataclass(frozen=True)
class Peaks:
    """The largest weight of each filter, over the mean of its group."""

    normalize: str = "mean"  # an option: --criterion peaks:normalize=max
    name: str = "peaks"
    needs_gradients: bool = False

    def channel_scores(self, group: ChannelGroup, modules: dict[str, nn.Module]) -> Tensor:
        """One non-negative score per channel of the group."""
        return reduced([rows.abs().amax(dim=1) for rows in weights(group, modules)], "mean")

    def normalised(self, scores):
        """Scores of one group made comparable with other groups'."""
        return normalise(scores, self.normalize)


# A package registers it by an entry point instead:
#   [project.entry-points."prunekit.criteria"]
#   peaks = "my_package:Peaks"
criteria.register("peaks", Peaks)

torch.manual_seed(0)
model = zoo.build("resnet8").eval()
graph = pk.trace(model, torch.randn(1, 3, 16, 16))
scores = pk.score(model, graph, Peaks())
best = scores.ranking("blocks.0.conv1")[:4]
print("the best four channels of blocks.0.conv1:", best.tolist())
