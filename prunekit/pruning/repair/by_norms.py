"""Without data: what removed channels are on average goes into the bias of what reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.core.plan import ChannelPlan
from prunekit.networks.slimming import kept
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.pruning.repair.inputs import survey_of
from prunekit.pruning.repair.layers import RepairedLayer
from prunekit.pruning.repair.means import layer_means
from prunekit.pruning.repair.shifts import Shifts


@torch.no_grad()
def shift_by_norms_(
    small: nn.Module, dense: nn.Module, plan: ChannelPlan, example: Any
) -> tuple[dict[str, RepairedLayer], dict[str, str]]:
    """Shift, in place, the layers of ``small`` that lost inputs; those shifted, those left and why.

    ``example`` is an input of any values.
    """
    inputs = (example,) if isinstance(example, Tensor) else example
    shifts = Shifts(small, survey_of(small, inputs))
    means, parts = layer_means(dense, inputs), kept(dense, plan)
    modules, slim_modules = dict(dense.named_modules()), dict(small.named_modules())
    layers: dict[str, RepairedLayer] = {}
    left: dict[str, str] = {}
    for name, cut in plan.cuts.items():
        module = modules[name]
        weight = module._parameters.get("weight")
        if not (cut.in_ and isinstance(module, LAYER_TYPES)) or getattr(module, "groups", 1) != 1:
            continue  # of a convolution in groups whole groups go, with all that they give
        if weight is None:
            left[name] = "its weight is computed"
        elif name not in means:
            left[name] = "no norm tells what it reads"
        elif not shifts.can(name):
            left[name] = "it has no bias, and no norm behind it"
        else:
            gone = list(cut.in_)
            shift = (
                weight.double()[:, gone].flatten(2).sum(2)
                if weight.ndim > 2
                else (weight.double()[:, gone])
            )
            rows = parts[f"{name}.weight"].axes.get(0)
            lost = shift @ means[name][gone]
            shifts.add_(slim_modules, name, lost if rows is None else lost[rows])
            layers[name] = RepairedLayer(None, None, None, 0, 0)
    return layers, left
