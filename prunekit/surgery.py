"""Physical removal of channels: the slim network is a new module, exactly the masked one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, UsageError
from prunekit.graph import fingerprint
from prunekit.plan import ChannelPlan, Cut


def slim(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of ``model`` without the channels ``plan`` removes; ``model`` is untouched.

    State names stay as they are; parameters, gradients' needs, buffers and training mode carry
    over. A plan made for another model is refused by its fingerprint.
    """
    found = fingerprint((name, tuple(t.shape)) for name, t in model.state_dict().items())
    if found != plan.fingerprint:
        raise UsageError(
            f"the plan is for another model (fingerprint {plan.fingerprint}, "
            f"this {type(model).__name__} has {found})"
        )
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    for name, cut in plan.cuts.items():
        cut_(modules[name], cut, name)
    return small


def cut_(module: nn.Module, cut: Cut, name: str = "") -> None:
    """Remove the positions of ``cut`` from one module's parameters and buffers, in place."""
    if isinstance(module, nn.Linear):
        _take(module, "weight", 0, cut.out)
        _take(module, "bias", 0, cut.out)
        _take(module, "weight", 1, cut.in_)
        module.out_features -= len(cut.out)
        module.in_features -= len(cut.in_)
    elif isinstance(module, nn.modules.conv._ConvNd):
        _cut_conv_(module, cut, name)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            _take(module, tensor, 0, cut.out)
        module.num_features -= len(cut.out)
    elif isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            _take(module, "weight", 0, cut.out)
            module.num_parameters -= len(cut.out)
    else:
        raise ModelError(f"cannot remove channels of {name} ({type(module).__name__})")


def _cut_conv_(module: nn.modules.conv._ConvNd, cut: Cut, name: str) -> None:
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    if module.transposed or (module.groups > 1 and not depthwise):
        raise ModelError(f"cannot remove channels of {name}: grouped or transposed convolution")
    _take(module, "weight", 0, cut.out)
    _take(module, "bias", 0, cut.out)
    module.out_channels -= len(cut.out)
    module.in_channels -= len(cut.in_)
    if depthwise:
        module.groups = module.in_channels
    else:
        _take(module, "weight", 1, cut.in_)


def _take(module: nn.Module, name: str, dim: int, removed: tuple[int, ...]) -> None:
    tensor = getattr(module, name, None)
    if tensor is None or not removed:
        return
    keep = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    keep[list(removed)] = False
    index = keep.nonzero().squeeze(1)
    kept: Tensor = tensor.detach().index_select(dim, index).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, kept)
