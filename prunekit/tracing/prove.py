"""Proof on a randomised copy: what cannot be shown to slim exactly is frozen, with the reason."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph import ChannelGraph
from prunekit.masks import mask_
from prunekit.plan import ChannelPlan
from prunekit.surgery import slim

TOLERANCE = 1e-6
"""Largest relative difference, in float64, between the masked and the slim network's outputs."""
SECONDS = 120.0
SIDES: tuple[Literal["in", "out"], ...] = ("in", "out")


def prove(
    model: nn.Module, graph: ChannelGraph, example: Any, *, train_mode: bool = False
) -> ChannelGraph:
    """``graph`` with every group frozen whose removal could not be proved exact."""
    working = _randomised(model)
    doubled = _double(example)
    if _failure(working, graph, doubled, None, train_mode) is None:
        return graph
    deadline = time.monotonic() + SECONDS
    reasons: dict[str, str] = {}
    for group in graph.groups:
        if not group.prunable or group.size < 2:
            continue
        if time.monotonic() > deadline:
            reasons[group.id] = f"not proved within {SECONDS:.0f} s"
            continue
        if reason := _failure(working, graph, doubled, group.id, train_mode):
            reasons[group.id] = reason
    frozen = _freeze(graph, reasons)
    if left := _failure(working, frozen, doubled, None, train_mode):
        everything = {g.id: f"the groups together: {left}" for g in graph.groups if g.prunable}
        return _freeze(frozen, everything)
    return frozen


def _freeze(graph: ChannelGraph, reasons: dict[str, str]) -> ChannelGraph:
    groups = tuple(
        replace(group, prunable=False, reason=reasons[group.id]) if group.id in reasons else group
        for group in graph.groups
    )
    return replace(graph, groups=groups)


def _failure(
    model: nn.Module, graph: ChannelGraph, example: Any, only: str | None, train_mode: bool
) -> str | None:
    """Why a random plan (over all prunable groups, or one) is not exact, or None when it is."""
    plan = ChannelPlan.random(graph, keep=0.6, seed=7)
    if only is not None:
        group = graph.group(only)
        kept = plan.keep[only] if len(plan.keep[only]) < group.size else plan.keep[only][1:]
        plan = ChannelPlan.from_keep(graph, {only: kept})
    try:
        small = slim(model, plan)
        if mismatch := _widths_differ(small, graph, plan):
            return mismatch
        masked = mask_(copy.deepcopy(model), plan)
        with torch.no_grad():
            expected, found = _outputs(masked, example), _outputs(small, example)
            if train_mode:
                _outputs(small.train(), _batch_of_two(example))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError) as error:
        return f"the slim network fails: {(str(error).splitlines() or [''])[0]}"
    for left, right in zip(expected, found, strict=True):
        if left.shape != right.shape:
            return f"the output's shape changes from {tuple(left.shape)} to {tuple(right.shape)}"
        scale = left.abs().max().clamp_min(1e-12)
        difference = float((left - right).abs().max() / scale)
        if not difference <= TOLERANCE:
            return f"removing is not the same as zeroing (relative difference {difference:.1e})"
    return None


def _widths_differ(small: nn.Module, graph: ChannelGraph, plan: ChannelPlan) -> str | None:
    modules = dict(small.named_modules())
    for layer in graph.layers:
        module: Any = modules[layer.name]
        kind = "features" if isinstance(module, nn.Linear) else "channels"
        for side in SIDES:
            physical = getattr(module, f"{side}_{kind}")
            predicted = layer.width(side, plan.widths)
            if physical != predicted:
                return f"{layer.name} would have {physical} {side} channels, not {predicted}"
    return None


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    from prunekit.tracing.atoms import _tensors

    return _tensors(model(**example) if isinstance(example, dict) else model(*example))


def _randomised(model: nn.Module) -> nn.Module:
    """A float64 copy whose norms and biases are not at their trivial initial values."""
    working = copy.deepcopy(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for module in working.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.copy_(0.1 * noise(module.running_mean))
                if module.running_var is not None:
                    module.running_var.copy_(0.75 + 0.1 * noise(module.running_var).abs())
                if module.weight is not None:
                    module.weight.copy_(1 + 0.2 * noise(module.weight))
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and bias.is_floating_point():
                bias.copy_(0.1 * noise(bias))
    return working


def _double(example: Any) -> Any:
    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.cpu().double()
        return value

    if isinstance(example, dict):
        return {key: convert(value) for key, value in example.items()}
    return tuple(convert(value) for value in example)


def _batch_of_two(example: Any) -> Any:
    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return {key: twice(value) for key, value in example.items()}
    return tuple(twice(value) for value in example)
