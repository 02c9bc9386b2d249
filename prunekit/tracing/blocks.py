"""Residual blocks that can be left out as a whole: without them every shape stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.networks.running import call
from prunekit.networks.slimming import Gone, copied
from prunekit.networks.weight_layers import LAYER_TYPES
from prunekit.tracing.follow import Followed
from prunekit.tracing.values import tensors


def removable(followed: Followed, model: nn.Module, example: Any) -> tuple[str, ...]:
    """Modules with layers that add to their own input and can be replaced by an identity.

    In the model's order, blocks inside of others too. Tried on a copy: the outputs keep their
    shapes without all outer ones, or without each alone.
    """
    expected = followed.shapes
    names = [
        name
        for name, module in model.named_modules()
        if name in followed.residual
        and any(isinstance(part, LAYER_TYPES) for part in module.modules())
    ]
    inner = {name for name in names if any(name.startswith(f"{outer}.") for outer in names)}
    outer = [name for name in names if name not in inner]
    if outer and _runs_without(outer, model, example, expected):
        alone = [name for name in names if name in inner]
    else:
        alone = names
    kept = {name for name in alone if not _runs_without([name], model, example, expected)}
    return tuple(name for name in names if name not in kept)


def _runs_without(
    names: list[str], model: nn.Module, example: Any, expected: list[tuple[int, ...]]
) -> bool:
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    small = copied(model, shared)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(small.get_submodule(owner), attribute, Gone())
    try:
        with torch.no_grad():
            outputs = tensors(call(small, example))
    except Exception:  # the model's own code may raise anything
        return False
    return [tuple(t.shape) for t in outputs] == expected
