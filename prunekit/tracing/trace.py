"""``trace``: groups from atoms, layers with their widths and shapes, everything proved."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from prunekit.core.graph import ChannelGraph, ChannelGroup, Layer, LayerShape, Member, Span
from prunekit.networks.running import call, each, refusing, tensors
from prunekit.networks.slimming import is_depthwise, model_fingerprint, named_tensors
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.support.errors import ModelError, UsageError
from prunekit.support.threads import threads
from prunekit.tracing.blocks import removable
from prunekit.tracing.counting import Sizes, called_as_functions, counting, per_sample
from prunekit.tracing.follow import follow
from prunekit.tracing.nodes import Alike
from prunekit.tracing.operations import epilogues
from prunekit.tracing.prove import prove
from prunekit.tracing.values import batch_of_two

HEADS = ("whole", "width")
SMALL = 50_000_000
"""Parameters of networks whose forward is small work, for which several threads are a waste."""
CHEAP = frozenset({"add", "add_", "sub", "mul", "mul_", "cat", "index"})
"""Operators that use a parameter, such as an embedding of positions, without a product."""


def trace(
    model: nn.Module, example: Any, *, validate: bool = True, heads: str = "whole"
) -> ChannelGraph:
    """The channel graph of ``model`` in evaluation mode; the model itself is untouched.

    ``example`` is an input tensor, a tuple of inputs or a dict of keyword inputs. Every group is
    proved on a randomised copy (masked output = slim output, predicted widths = physical widths);
    what fails is frozen with the reason in ``ChannelGroup.reason``.

    Of attentions either ``heads="whole"`` can be removed or channels of all heads alike
    (``"width"``); their scale stays as it is.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        >>> for group in trace(model, torch.zeros(1, 3, 8, 8)).groups:
        ...     print(group.id, group.size, group.reason or "prunable")
        0 8 prunable
        2 4 it is the model's output
    """
    if heads not in HEADS:
        raise UsageError(f"`heads` must be whole or width, not {heads!r}")
    # a cache of weights in half precision would outlive their changes
    exact = torch.autocast("cpu", enabled=False, cache_enabled=False)
    with torch.inference_mode(False), exact:
        example = example if isinstance(example, (tuple, dict)) else (example,)
        if any(is_lazy(tensor) for _, tensor in named_tensors(model)):
            raise ModelError(f"{type(model).__name__} has lazy layers without a size; run it once")
        _refuse_imitations(model)
        small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
        with threads(1) if small else nullcontext():
            graph, partly = _trace(model, example, heads)
        return prove(model, graph, example, train_mode=partly) if validate else graph


def _refuse_imitations(model: nn.Module) -> None:
    """Layers that imitate quantised weights know the ranges of all channels together."""
    for name, module in model.named_modules():
        if hasattr(module, "weight_fake_quant"):
            raise ModelError(
                f"{name or 'the model'} ({type(module).__name__}) imitates a quantised weight; "
                "prune the network first, then prepare what is left for quantisation"
            )


def _trace(model: nn.Module, example: Any, heads: str) -> tuple[ChannelGraph, bool]:
    """The graph as it is followed, and whether evaluation leaves some layers out."""
    try:
        working = copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}"
        ) from error
    example = each(example, lambda value: value.cpu())
    shapes, activations = _forward_shapes(working, example)
    inside = _inside_attention(working)
    unused = [
        name
        for name, module in working.named_modules()
        if isinstance(module, LAYER_TYPES) and name not in shapes and name not in inside
    ]
    followed = follow(
        working,
        example,
        batch_of_two(example) if unused else None,
        whole_heads=heads == "whole",
    )
    groups = _groups(followed.atoms, working)
    layers = _layers(working, shapes, groups, epilogues(followed.operations))
    unpriced = _unpriced(working, followed.uses)
    notes = (
        *((f"not used in evaluation mode: {', '.join(unused)}",) if unused else ()),
        *followed.notes,
        *((f"its cost is not counted: {', '.join(unpriced)}",) if unpriced else ()),
    )
    graph = ChannelGraph(
        groups=tuple(groups),
        layers=tuple(layers),
        fingerprint=model_fingerprint(model),
        input_shapes=tuple(tuple(t.shape) for t in tensors(example)),
        notes=notes,
        removable=removable(followed, working, example),
        buffers=followed.ledger.buffers(groups),
        activation_macs=activations,
    )
    return graph, bool(unused)


def _inside_attention(model: nn.Module) -> set[str]:
    """Linear layers whose weights attention reads without calling them."""
    return {
        f"{name}.out_proj" if name else "out_proj"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }


def _unpriced(model: nn.Module, uses: Mapping[tuple[str, str], set[str]]) -> list[str]:
    """Modules that multiply by matrices of their own and are no layers of the graph."""
    return [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not isinstance(module, (*LAYER_TYPES, nn.Embedding, nn.EmbeddingBag))
        and not hasattr(module, "parametrizations")
        and not isinstance(module, ParametrizationList)
        and any(
            parameter.squeeze().ndim > 1 and not uses.get((name, attribute), {""}) <= CHEAP
            for attribute, parameter in module.named_parameters(recurse=False)
        )
    ]


def _forward_shapes(model: nn.Module, example: Any) -> tuple[dict[str, list[Sizes]], int]:
    """Input and output shapes of every call of every layer; products of activations per sample."""
    shapes: dict[str, list[Sizes]] = defaultdict(list)
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LAYER_TYPES):

            def hook(_m: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                if not args[0].is_nested:  # refused with a better reason later
                    shapes[name].append((tuple(args[0].shape), tuple(out.shape)))

            hooks.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad(), refusing(model, example), counting(model) as counter:
            call(model, example)
    finally:
        for handle in hooks:
            handle.remove()
    first = tensors(example)[0]
    batch = max(1, len(first)) if first.ndim else 1
    inside = _inside_attention(model)
    used = called_as_functions(model, counter, batch)
    every = {**{name: calls for name, calls in used.items() if name not in inside}, **shapes}
    modules = dict(model.named_modules())
    counted = {
        name: per_sample(calls, batch, matrices=isinstance(modules[name], nn.Linear))
        for name, calls in every.items()
    }
    return counted, counter.activations // batch


def _groups(atoms: list[Alike], model: nn.Module) -> list[ChannelGroup]:
    """Atoms that touch the same slots equally often form one group, in the model's order."""
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    groups = []
    for alike in atoms:
        slots = sorted(alike.positions, key=lambda slot: (order[slot[0]], str(slot[1])))
        first = next(slot for slot in slots if slot[1].is_output)
        rows = np.argsort(alike.positions[first][:, 0], kind="stable")
        groups.append(
            ChannelGroup(
                id=first[0],
                size=len(alike),
                granularity=1,
                min_width=1,
                prunable=not alike.frozen and len(alike) > 1,
                members=tuple(Member(*slot, alike.positions[slot][rows]) for slot in slots),
                reason=alike.frozen or _alone(alike),
            )
        )
    groups.sort(key=lambda g: (order[g.id], int(g.members[0].index.min())))
    return _unique(groups)


def _alone(atoms: Alike) -> str:
    """Why a group of one cannot be narrowed."""
    if len(atoms) > 1:
        return ""
    most = max(positions.shape[1] for positions in atoms.positions.values())
    return "it is a single channel" if most == 1 else f"its {most} channels can only go together"


def _unique(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    counts: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        counts[group.id] += 1
        repeat = counts[group.id]
        named.append(replace(group, id=f"{group.id}#{repeat}") if repeat > 1 else group)
    return named


def _layers(
    model: nn.Module,
    shapes: dict[str, list[Sizes]],
    groups: list[ChannelGroup],
    epilogue: dict[str, tuple[str, ...]],
) -> list[Layer]:
    spans: dict[tuple[str, str], list[tuple[int, Span]]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            span = Span(group.id, group.size, member.index.shape[1])
            for side in member.role.sides:
                spans[member.module, side].append((int(member.index.min()), span))
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, LAYER_TYPES) or name not in shapes:
            continue
        sides = {
            side: tuple(span for _, span in sorted(spans[name, side], key=lambda item: item[0]))
            for side in ("in", "out")
        }
        layers.append(
            Layer(
                name=name,
                shape=_shape(module, shapes[name], epilogue.get(name, ())),
                in_channels=_channels(module, "in"),
                out_channels=_channels(module, "out"),
                in_spans=sides["in"],
                out_spans=sides["out"],
                has_bias=module.bias is not None,
                calls=len(shapes[name]),
            )
        )
    return layers


def _channels(module: nn.Module, side: str) -> int:
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    return int(getattr(module, f"{side}_{kind}"))


def _shape(module: nn.Module, calls: Sequence[Sizes], epilogue: tuple[str, ...]) -> LayerShape:
    spatial = isinstance(module, nn.modules.conv._ConvNd)
    where = slice(2, None) if spatial else slice(1, -1)
    sizes = [(before[where], after[where]) for before, after in calls]
    shape = LayerShape(
        kind="linear",
        in_hw=sizes[0][0],
        out_hw=sizes[0][1],
        epilogue=epilogue,
        further=tuple(sizes[1:]) if len(set(sizes)) > 1 else (),
    )
    if not isinstance(module, nn.modules.conv._ConvNd):
        return shape
    depthwise = is_depthwise(module)
    return replace(
        shape,
        kind="depthwise" if depthwise else "transposed" if module.transposed else "conv",
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        dilation=tuple(module.dilation),
        groups=1 if depthwise else module.groups,
    )
