"""Where a constant that is added to what a layer gives can be kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.networks.products import Survey


class Shifts:
    """Constants go into a layer's bias, else into the mean that the norm behind it takes off.

    So names and shapes of the state stay, and a saved network loads as before.
    """

    def __init__(self, model: nn.Module, survey: Survey) -> None:
        self.by_bias = {
            layer
            for layer in survey.calls
            if isinstance(model.get_submodule(layer)._parameters.get("bias"), Tensor)
        }
        norms = {layer: survey.norm_after(layer) for layer in survey.calls}
        self.by_norm = {layer: norm for layer, norm in norms.items() if norm is not None}

    def can(self, layer: str) -> bool:
        """Whether there is a place for it."""
        return layer in self.by_bias or layer in self.by_norm

    @torch.no_grad()
    def add_(self, modules: Mapping[str, nn.Module], layer: str, shift: Tensor) -> None:
        """Add ``shift``, one number per output, in place; nothing where there is no place."""
        if layer in self.by_bias:
            bias = modules[layer]._parameters["bias"]
            if bias is not None:
                bias.add_(shift.to(bias.dtype))
        elif layer in self.by_norm:
            mean = modules[self.by_norm[layer]]._buffers["running_mean"]
            if mean is not None:
                mean.sub_(shift.to(mean.dtype))
