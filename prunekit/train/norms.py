"""Statistics of norm layers, taken anew after channels are gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.networks.running import evaluating
from prunekit.tasks.base import run

BATCHES = 20
"""Enough for means and variances to be known to a few percent at usual batch sizes."""


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace running means and variances by those over ``batches`` of inputs; gives the layers.

    Everything else stays, and runs in evaluation mode; a model without such layers is not run.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return 0
    with evaluating(model), _averaging(norms):
        for inputs in batches:
            run(model, inputs)
    return len(norms)


@contextmanager
def _averaging(norms: list[_NormBase]) -> Iterator[None]:
    """Norm layers average over all batches inside the block, from nothing on."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
