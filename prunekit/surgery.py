"""Physical removal of channels: the slim network is a new module, exactly the masked one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, UsageError
from prunekit.graph import fingerprint
from prunekit.plan import ChannelPlan, Cut

Done = dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor]]
"""(identity, axis, positions removed) -> the tensor, kept alive, and what is left of it."""


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
    done: Done = {}
    for name, cut in plan.cuts.items():
        if name not in modules:
            raise ModelError(f"the plan cuts {name!r}, which {type(model).__name__} does not have")
        cut_(modules[name], cut, name, done)
    return small


def cut_(module: nn.Module, cut: Cut, name: str = "", done: Done | None = None) -> None:
    """Remove the positions of ``cut`` from one module's parameters and buffers, in place.

    ``done`` remembers what was cut, so that a parameter that two modules share stays shared.
    """
    done = {} if done is None else done
    if isinstance(module, nn.Linear):
        _take(module, "weight", 0, cut.out, done)
        _take(module, "bias", 0, cut.out, done)
        _take(module, "weight", 1, cut.in_, done)
        module.out_features -= len(cut.out)
        module.in_features -= len(cut.in_)
    elif isinstance(module, nn.modules.conv._ConvNd):
        _cut_conv_(module, cut, name, done)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            _take(module, tensor, 0, cut.out, done)
        module.num_features -= len(cut.out)
    elif isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            _take(module, "weight", 0, cut.out, done)
            module.num_parameters -= len(cut.out)
    else:
        raise ModelError(f"cannot remove channels of {name} ({type(module).__name__})")


def _cut_conv_(module: nn.modules.conv._ConvNd, cut: Cut, name: str, done: Done) -> None:
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    if module.transposed or (module.groups > 1 and not depthwise):
        raise ModelError(f"cannot remove channels of {name}: grouped or transposed convolution")
    _take(module, "weight", 0, cut.out, done)
    _take(module, "bias", 0, cut.out, done)
    module.out_channels -= len(cut.out)
    module.in_channels -= len(cut.in_)
    if depthwise:
        module.groups = module.in_channels
    else:
        _take(module, "weight", 1, cut.in_, done)


def _take(module: nn.Module, name: str, dim: int, removed: tuple[int, ...], done: Done) -> None:
    tensor = getattr(module, name, None)
    if tensor is None or not removed:
        return
    if not (removed[0] >= 0 and removed[-1] < tensor.shape[dim] > len(removed)):
        raise ModelError(
            f"cannot remove channels {removed[0]} to {removed[-1]} of {tensor.shape[dim]} from "
            f"the {name} of a {type(module).__name__}; the plan does not fit the model"
        )
    known = done.get((id(tensor), dim, removed))
    if known is not None:
        setattr(module, name, known[1])
        return
    keep = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    keep[list(removed)] = False
    index = keep.nonzero().squeeze(1)
    kept: Tensor = tensor.detach().index_select(dim, index).clone()
    if isinstance(tensor, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
    setattr(module, name, kept)
    done[id(tensor), dim, removed] = (tensor, kept)
