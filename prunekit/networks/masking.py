"""The plan by zeros: the dense network behaves as the slim one, for training and for scoring."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from prunekit.core.plan import ChannelPlan, check_same
from prunekit.networks.slimming import (
    Gone,
    MaskHook,
    Zeroed,
    cut_axes,
    drop_masks,
    left,
    model_fingerprint,
)
from prunekit.support.errors import ModelError

M = TypeVar("M", bound=nn.Module)


@torch.inference_mode(False)
def mask_(model: M, plan: ChannelPlan) -> M:
    """Zero, in place, all parameter elements of the channels that ``plan`` removes.

    Producers lose weight rows and biases, norms their scale and shift, and consumers the columns
    that read the channels, so that the output is the slim network's whatever the activation in
    between gives for zero. A LayerNorm takes its statistics over the channels that are kept, and
    weights that parametrisations compute are zeroed after these; of several masks one upon another
    the last one's.
    Blocks that go as a whole give their input back.
    Raises ModelError where two parameters share memory, as both would be zeroed.
    """
    check_same(plan.fingerprint, model_fingerprint(model), type(model).__name__)
    modules = dict(model.named_modules())
    _refuse_overlaps(model)
    drop_masks(model)  # of an earlier plan
    for name, cut in plan.cuts.items():
        module = modules[name]
        zero_(module, cut_axes(module, cut, name))
        if isinstance(module, nn.LayerNorm) and cut.out:
            norm = _KeptNorm(left(module.normalized_shape[0], cut.out))
            module.register_forward_pre_hook(norm.begin)
            module.register_forward_hook(norm.end, always_call=True)
    for block in plan.removed:
        modules[block].forward = Gone().forward
    return model


def _refuse_overlaps(model: nn.Module) -> None:
    """Parameters that lie in the same memory without being the same would be zeroed together."""
    at: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.numel() or parameter.is_meta:
            continue
        other, first = at.setdefault(parameter.data_ptr(), (name, parameter))
        if first is not parameter:
            raise ModelError(
                f"{other} and {name} share memory without being one parameter; "
                "tie them (one nn.Parameter under both names) or copy one"
            )


@torch.no_grad()
def zero_(module: nn.Module, axes: dict[str, dict[int, tuple[int, ...]]]) -> None:
    """Zero these positions of the axes of a module's own parameters, as `cut_axes` gives them.

    What a parametrisation computes stays zero there, whatever becomes of what it computes from.
    """
    for name, by_axis in axes.items():
        if name in ("running_mean", "running_var") or isinstance(module, nn.PReLU):
            continue
        tensor: Tensor = getattr(module, name)
        computed = is_parametrized(module, name)
        if computed:
            tensor = torch.ones_like(tensor)
        for axis, positions in by_axis.items():
            tensor.index_fill_(axis, torch.tensor(positions, device=tensor.device), 0)
        if computed:
            module.parametrizations[name].append(Zeroed(tensor))  # type: ignore[index,union-attr]


class _KeptNorm(MaskHook, TorchFunctionMode):
    """While its module runs, layer norms are over some positions of the last axis only."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def begin(self, *_: Any) -> None:
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.layer_norm:
            return func(*args, **(kwargs or {}))
        return self._norm(*args, **(kwargs or {}))

    def _norm(
        self,
        input: Tensor,  # noqa: A002 - as torch calls it
        normalized_shape: Any,  # noqa: ARG002 - the kept ones are normalised
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        kept = self.kept.to(input.device)
        scale, shift = (None if t is None else t[kept] for t in (weight, bias))
        part = F.layer_norm(input[..., kept], (len(kept),), scale, shift, eps)
        return torch.zeros_like(input).index_copy(input.ndim - 1, kept, part)
