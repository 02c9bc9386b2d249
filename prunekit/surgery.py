"""Physical removal of channels: the slim network is a new module, exactly the masked one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, UsageError
from prunekit.graph import fingerprint
from prunekit.plan import ChannelPlan, Cut


@dataclass(frozen=True)
class Kept:
    """The elements of one tensor that a plan keeps: positions on its first two axes, ascending.

    None keeps a whole axis.
    """

    out: Tensor | None = None
    in_: Tensor | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """The kept elements, as a tensor of their own."""
        found = tensor.detach()
        if self.out is not None:
            found = found.index_select(0, self.out)
        if self.in_ is not None:
            found = found.index_select(1, self.in_)
        return found.clone() if found.data_ptr() == tensor.data_ptr() else found

    @torch.no_grad()
    def put_(self, tensor: Tensor, small: Tensor) -> None:
        """Write ``small`` over the kept elements of ``tensor``, in place."""
        if self.out is not None and self.in_ is not None:
            tensor.index_put_((self.out[:, None], self.in_[None, :]), small)
        elif self.out is not None:
            tensor.index_copy_(0, self.out, small)
        elif self.in_ is not None:
            tensor.index_copy_(1, self.in_, small)
        else:
            tensor.copy_(small)

    def within(self, outer: Kept) -> Kept:
        """The same elements, counted in a tensor of which only ``outer`` is left."""
        return Kept(_within(self.out, outer.out), _within(self.in_, outer.in_))


def _within(inner: Tensor | None, outer: Tensor | None) -> Tensor | None:
    if inner is None or outer is None:
        return inner
    return torch.searchsorted(outer, inner)


WHOLE = Kept()


def kept(model: nn.Module, plan: ChannelPlan) -> dict[str, Kept]:
    """What ``plan`` keeps of every parameter and buffer that it cuts, by the tensor's name.

    Raises UsageError for a plan of another model, ModelError for one that does not fit.
    """
    found = fingerprint((name, tuple(t.shape)) for name, t in model.state_dict().items())
    if found != plan.fingerprint:
        raise UsageError(
            f"the plan is for another model (fingerprint {plan.fingerprint}, "
            f"this {type(model).__name__} has {found})"
        )
    modules = dict(model.named_modules())
    chosen: dict[str, Kept] = {}
    for name, cut in plan.cuts.items():
        if name not in modules:
            raise ModelError(f"the plan cuts {name!r}, which {type(model).__name__} does not have")
        module = modules[name]
        for tensor, (out, in_) in _cuts(module, cut, name).items():
            if getattr(module, tensor, None) is not None:
                full = f"{name}.{tensor}" if name else tensor
                axes = (_rest(module, tensor, axis, gone) for axis, gone in ((0, out), (1, in_)))
                chosen[full] = Kept(*axes)
    return chosen


def slim(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of ``model`` without the channels ``plan`` removes; ``model`` is untouched.

    State names stay as they are; parameters, gradients' needs, buffers and training mode carry
    over. A plan made for another model is refused by its fingerprint.
    """
    chosen = kept(model, plan)
    # deepcopy takes these for the tensors' copies, so that what goes is never copied
    copies: dict[int, Any] = {}
    by: dict[int, tuple[str, Kept]] = {}
    by_name = dict(_tensors(model))
    for name, tensor in by_name.items():
        part = chosen.get(name, WHOLE)
        other, earlier = by.setdefault(id(tensor), (name, part))
        if not _equal(part, earlier):
            raise ModelError(f"the plan cuts {other} and {name} differently, but they are shared")
        if other == name and part is not WHOLE:
            copies[id(tensor)] = _like(tensor, part.take(tensor))
    small = copy.deepcopy(model, copies)
    modules = dict(small.named_modules())
    for name in chosen.keys() - by_name:  # computed by a parametrisation, which takes it apart
        owner, _, attribute = name.rpartition(".")
        value = chosen[name].take(getattr(modules[owner], attribute))
        setattr(modules[owner], attribute, value)
    for name, cut in plan.cuts.items():
        _count(modules[name], cut)
    return small


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers with all their names."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _equal(one: Kept, other: Kept) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in ((one.out, other.out), (one.in_, other.in_))
    )


def _cuts(
    module: nn.Module, cut: Cut, name: str
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Positions removed from the first and the second axis of each of the module's tensors."""
    if isinstance(module, nn.Linear):
        return {"weight": (cut.out, cut.in_), "bias": (cut.out, ())}
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed or (module.groups > 1 and not _is_depthwise(module)):
            raise ModelError(f"cannot remove channels of {name}: grouped or transposed convolution")
        return {
            "weight": (cut.out, () if _is_depthwise(module) else cut.in_),
            "bias": (cut.out, ()),
        }
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        return dict.fromkeys(names, (cut.out, ()))
    if isinstance(module, nn.PReLU):
        return {"weight": (cut.out, ())} if module.num_parameters > 1 else {}
    raise ModelError(f"cannot remove channels of {name} ({type(module).__name__})")


def _is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups == module.in_channels == module.out_channels > 1


def _rest(module: nn.Module, name: str, axis: int, gone: tuple[int, ...]) -> Tensor | None:
    """Positions left on ``axis``, or None where nothing goes."""
    if not gone:
        return None
    tensor: Tensor = getattr(module, name)
    size = tensor.shape[axis]
    if not (gone[0] >= 0 and gone[-1] < size > len(gone)):
        raise ModelError(
            f"cannot remove channels {gone[0]} to {gone[-1]} of {size} from "
            f"the {name} of a {type(module).__name__}; the plan does not fit the model"
        )
    keep = torch.ones(size, dtype=torch.bool)
    keep[list(gone)] = False
    return keep.nonzero().squeeze(1).to(tensor.device)


def _count(module: nn.Module, cut: Cut) -> None:
    """Bring a module's own numbers of channels in line with its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features -= len(cut.out)
        module.in_features -= len(cut.in_)
    elif isinstance(module, nn.modules.conv._ConvNd):
        depthwise = _is_depthwise(module)
        module.out_channels -= len(cut.out)
        module.in_channels -= len(cut.in_)
        if depthwise:
            module.groups = module.in_channels
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features -= len(cut.out)
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        module.num_parameters -= len(cut.out)
