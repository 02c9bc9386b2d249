"""Physical removal of channels: the slim network is a new module, exactly the masked one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from prunekit.core.graph import ChannelGraph, fingerprint
from prunekit.core.plan import ChannelPlan, Cut, check_same, narrowed
from prunekit.core.role import Role
from prunekit.support.errors import ModelError, UsageError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Kept:
    """The elements of one tensor that a plan keeps: ascending positions on the axes it cuts.

    Axes not named are whole.
    """

    axes: dict[int, Tensor] = field(default_factory=dict)

    def take(self, tensor: Tensor) -> Tensor:
        """The kept elements, as a tensor of their own."""
        slices = tensor.detach()
        for axis, positions in self.axes.items():
            slices = slices.index_select(axis, positions)
        if not self.axes:
            return slices.clone()
        return slices.contiguous(memory_format=_memory_format(tensor))

    @torch.no_grad()
    def put_(self, tensor: Tensor, small: Tensor) -> None:
        """Write ``small`` over the kept elements of ``tensor``, in place."""
        if not self.axes:
            tensor.copy_(small)
        elif len(self.axes) == 1:
            ((axis, positions),) = self.axes.items()
            tensor.index_copy_(axis, positions, small)
        else:
            tensor[self._grid(tensor)] = small

    def _grid(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """An index of the kept elements that broadcasts to their shape."""
        last = max(self.axes)
        indices = []
        for axis in range(last + 1):
            whole = torch.arange(tensor.shape[axis], device=tensor.device)
            indices.append(self.axes.get(axis, whole).view(-1, *[1] * (last - axis)))
        return tuple(indices)

    def within(self, outer: Kept) -> Kept:
        """The same elements, counted in a tensor of which only ``outer`` is left."""
        return Kept(
            {
                axis: torch.searchsorted(outer.axes[axis], kept) if axis in outer.axes else kept
                for axis, kept in self.axes.items()
            }
        )


WHOLE = Kept()


def kept(model: nn.Module, plan: ChannelPlan) -> dict[str, Kept]:
    """What ``plan`` keeps of every parameter and buffer that it cuts, by the tensor's name.

    Raises UsageError for a plan of another model, ModelError for one that does not fit.
    """
    check_same(plan.fingerprint, model_fingerprint(model), type(model).__name__)
    modules = dict(model.named_modules())
    chosen: dict[str, Kept] = {}
    for name, cut in plan.cuts.items():
        if name not in modules:
            raise ModelError(f"the plan cuts {name!r}, which {type(model).__name__} does not have")
        module = modules[name]
        for tensor, axes in cut_axes(module, cut, name).items():
            full = f"{name}.{tensor}" if name else tensor
            whole: Tensor = getattr(module, tensor)
            rest = {axis: _rest(module, tensor, axis, gone) for axis, gone in axes.items()}
            chosen[full] = Kept({a: k.to(whole.device) for a, k in rest.items()})
    return chosen


@torch.inference_mode(False)
def slim(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of ``model`` without the channels ``plan`` removes; ``model`` is untouched.

    State names stay as they are; parameters, gradients' needs, buffers, memory formats and training
    mode carry over. A plan made for another model is refused by its fingerprint.

    Examples:
        >>> from prunekit import ChannelPlan, trace
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> plan = ChannelPlan.from_widths(trace(model, torch.zeros(1, 3, 8, 8)), {"0": 5})
        >>> slim(model, plan)[0]
        Conv2d(3, 5, kernel_size=(3, 3), stride=(1, 1))
    """
    chosen = kept(model, plan)
    # deepcopy takes these for the tensors' copies, so that what goes is never copied
    copies: dict[int, Any] = {}
    by: dict[int, tuple[str, Kept]] = {}
    by_name = dict(named_tensors(model))
    for name, tensor in by_name.items():
        part = chosen.get(name, WHOLE)
        other, earlier = by.setdefault(id(tensor), (name, part))
        if part is not earlier and not _equal(part, earlier):
            raise ModelError(f"the plan cuts {other} and {name} differently, but they are shared")
        if other == name and part is not WHOLE:
            copies[id(tensor)] = _like(tensor, part.take(tensor))
    small = copied(model, copies)
    drop_masks(small)
    modules = dict(small.named_modules())
    for name in chosen.keys() - by_name:  # computed by a parametrisation, which takes it apart
        owner, _, attribute = name.rpartition(".")
        value = chosen[name].take(getattr(modules[owner], attribute))
        setattr(modules[owner], attribute, value)
    for name, cut in plan.cuts.items():
        _count(modules[name], cut)
        _scale(modules[name], cut)
    for block in plan.removed:
        owner, _, attribute = block.rpartition(".")
        setattr(modules[owner], attribute, Gone())
    return small


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy in the same mode, which copies of torchvision's feature extractors lose."""
    copy_ = copy.deepcopy(model, memo)
    modules = dict(copy_.named_modules())
    for name, module in model.named_modules():
        if name in modules:
            modules[name].training = module.training
    return copy_


class MaskHook:
    """What a mask hooks into a model for the time being, by methods of its own."""


class Zeroed(nn.Module):
    """The last of a weight's parametrisations: zero at some positions. It has no state."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        return weight * self.factor


def drop_masks(model: nn.Module) -> None:
    """Remove every :class:`MaskHook` and :class:`Zeroed`.

    Also from a copy, whose handles are the original's.
    """
    for module in list(model.modules()):
        if isinstance(module, ParametrizationList):
            for number in reversed(range(len(module))):
                if isinstance(module[number], Zeroed):
                    del module[number]
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), MaskHook):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)


class Gone(nn.Module):
    """Stands where a residual block was: gives its first input back."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """The input."""
        return x


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, shared ones by all their names; each module by its first name."""
    return [
        (f"{name}.{attribute}" if name else attribute, tensor)
        for name, module in model.named_modules()
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]


def slim_further(
    small: nn.Module, graph: ChannelGraph, plan: ChannelPlan, narrower: ChannelPlan
) -> nn.Module:
    """A copy of ``small`` without what ``narrower`` removes beyond ``plan``.

    Both plans are of the dense network that ``graph`` is of, and ``small`` is what ``plan`` leaves
    of it, with weights of its own. Raises UsageError where ``narrower`` keeps a channel that
    ``plan`` does not.
    """
    keep = {}
    for group, had in plan.keep.items():
        if not set(narrower.keep[group]) <= set(had):
            raise UsageError(f"group {group!r}: the narrower plan keeps what is gone already")
        if had:
            keep[group] = np.searchsorted(had, narrower.keep[group]).tolist()
    return slim(small, ChannelPlan.from_keep(graph_of(small, graph, plan), keep))


def graph_of(small: nn.Module, graph: ChannelGraph, plan: ChannelPlan) -> ChannelGraph:
    """The groups of ``small``, which ``plan`` left of ``graph``'s network; no layers."""
    return replace(narrowed(graph, plan), fingerprint=model_fingerprint(small))


def model_fingerprint(model: nn.Module) -> str:
    """Identity of a model's structure: its state's names and shapes."""
    state = model.state_dict().items()
    return fingerprint((name, tuple(t.shape)) for name, t in state if isinstance(t, Tensor))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.is_contiguous():
        return torch.contiguous_format
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is not None and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _equal(one: Kept, other: Kept) -> bool:
    return one.axes.keys() == other.axes.keys() and all(
        torch.equal(positions, other.axes[axis]) for axis, positions in one.axes.items()
    )


def cut_axes(module: nn.Module, cut: Cut, name: str) -> dict[str, dict[int, tuple[int, ...]]]:
    """Positions removed from the axes of each of the module's own tensors.

    Raises ModelError where that is not known for this kind of module.
    """
    axes: dict[str, dict[int, tuple[int, ...]]] = {}
    if isinstance(module, nn.Linear):
        axes = {"weight": {0: cut.out, 1: cut.in_}, "bias": {0: cut.out}}
    elif isinstance(module, nn.modules.conv._ConvNd):
        axes = {"weight": {0: cut.out}, "bias": {0: cut.out}}
        if module.groups == 1:
            axes["weight"] = (
                {1: cut.out, 0: cut.in_} if module.transposed else {0: cut.out, 1: cut.in_}
            )
        elif module.transposed and not is_depthwise(module):
            raise ModelError(
                f"cannot remove channels of {name}: it is a grouped transposed convolution"
            )
    elif isinstance(module, NORMS):
        names = ("weight", "bias", "running_mean", "running_var")
        axes = {tensor: {0: cut.out} for tensor in names}
    elif isinstance(module, nn.PReLU):
        axes = {"weight": {0: cut.out}} if module.num_parameters > 1 else {}
    elif cut.out or cut.in_:
        raise ModelError(f"cannot remove channels of {name} ({type(module).__name__})")
    for role, positions in cut.others.items():
        if role.tensor:
            axes.setdefault(role.tensor, {})[role.axis] = positions
    removed = {
        tensor: {axis: gone for axis, gone in sorted(by_axis.items()) if gone}
        for tensor, by_axis in axes.items()
        if isinstance(getattr(module, tensor, None), Tensor)
    }
    return {tensor: by_axis for tensor, by_axis in removed.items() if by_axis}


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel has a filter of its own."""
    return isinstance(module, nn.modules.conv._ConvNd) and (
        module.groups == module.in_channels == module.out_channels > 1
    )


def _rest(module: nn.Module, name: str, axis: int, gone: tuple[int, ...]) -> Tensor:
    """Positions left on ``axis``."""
    tensor: Tensor = getattr(module, name)
    size = tensor.shape[axis] if axis < tensor.ndim else 0
    if not (gone[0] >= 0 and gone[-1] < size > len(gone)):
        raise ModelError(
            f"cannot remove channels {gone[0]} to {gone[-1]} of {size} from "
            f"the {name} of a {type(module).__name__}; the plan does not fit the model"
        )
    return left(size, gone)


def left(size: int, gone: Sequence[int]) -> Tensor:
    """Positions of an axis without those in ``gone``, ascending."""
    keep = torch.ones(size, dtype=torch.bool, device="cpu")
    keep[list(gone)] = False
    return keep.nonzero().squeeze(1)


@torch.no_grad()
def _scale(module: Any, cut: Cut) -> None:
    """Multiply what a cut layer writes at some positions."""
    for part in cut.scaled:
        before = np.searchsorted(cut.out, part.rows)
        rows = torch.from_numpy(np.asarray(part.rows) - before).to(module.weight.device)
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor[rows] *= part.factor


def _count(module: Any, cut: Cut) -> None:
    """Bring a module's own numbers of channels in line with its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features -= len(cut.out)
        module.in_features -= len(cut.in_)
    elif isinstance(module, nn.modules.conv._ConvNd):
        per_group = module.in_channels // module.groups
        module.out_channels -= len(cut.out)
        module.in_channels -= len(cut.in_)
        if module.groups > 1:
            module.groups = module.in_channels // per_group
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features -= len(cut.out)
    elif isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        module.num_channels -= len(cut.out)
        module.num_groups = module.num_channels // per_group
    elif isinstance(module, nn.LayerNorm) and cut.out:
        module.normalized_shape = (module.normalized_shape[0] - len(cut.out),)
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        module.num_parameters -= len(cut.out)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim -= len(cut.of(Role.of_tensor("weight", 1)))
    for role, positions in cut.others.items():
        if role.attribute:
            remaining = getattr(module, role.attribute) - len(positions)
            setattr(module, role.attribute, remaining)
