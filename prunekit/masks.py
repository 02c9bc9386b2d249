"""The plan by zeros: the dense network behaves as the slim one, for training and for scoring."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from prunekit.plan import ChannelPlan, Cut

M = TypeVar("M", bound=nn.Module)


def mask_(model: M, plan: ChannelPlan) -> M:
    """Zero, in place, all parameter elements of the channels that ``plan`` removes.

    Producers lose weight rows and biases, norms their scale and shift, and consumers the columns
    that read the channels, so that the output is the slim network's whatever the activation in
    between gives for zero.
    """
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, cut in plan.cuts.items():
            _zero_(modules[name], cut)
    return model


def _zero_(module: nn.Module, cut: Cut) -> None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    out = list(cut.out)
    if weight is not None and out and not isinstance(module, nn.PReLU):
        weight[out] = 0
    if bias is not None and out:
        bias[out] = 0
    if cut.in_ and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        depthwise = getattr(module, "groups", 1) > 1
        if not depthwise and weight is not None:
            weight[:, list(cut.in_)] = 0
