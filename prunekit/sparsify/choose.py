"""Which weights stay and which grow: functions of scores alone, ties broken by position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunekit.core.density import Pattern
from prunekit.networks.zeros import top_of_blocks
from prunekit.sparsify.masks import factors

ABSENT = -1.0
"""The score of what cannot be chosen; real scores are not negative."""


SAMPLE = 16
"""One value of so many is looked at first where there are many."""


def top(scores: Tensor, count: int) -> Tensor:
    """Which ``count`` elements score highest, as booleans of the same shape."""
    flat = scores.reshape(-1)
    if count <= 0 or count >= flat.numel():
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = _kth_largest(flat, count)
    chosen = _at_least(flat, threshold)
    if int(torch.count_nonzero(chosen)) > count:  # ties
        chosen = flat > threshold
        left = count - int(torch.count_nonzero(chosen))
        chosen[(flat == threshold).nonzero()[:left]] = True
    return chosen.view(scores.shape)


def _kth_largest(flat: Tensor, count: int) -> Tensor:
    """The ``count``-th largest value.

    Selecting among hundreds of thousands takes as long as a training step, so that a sample first
    finds a bound that few exceed; where it was too high, all are looked through.
    """
    sample = flat[::SAMPLE]
    rank = int(1.25 * count / SAMPLE) + 64
    if rank < sample.numel() // 2:
        bound = sample.kthvalue(sample.numel() - rank + 1).values
        rest = _picked(flat, _at_least(flat, bound))
        if rest.numel() >= count:
            flat = rest
    return flat.kthvalue(flat.numel() - count + 1).values


# On a CPU NumPy takes a fraction of torch's time for these.


def _in_numpy(flat: Tensor) -> bool:
    return flat.device.type == "cpu" and flat.dtype is not torch.bfloat16  # which it lacks


def _at_least(flat: Tensor, bound: Tensor) -> Tensor:
    if not _in_numpy(flat):
        return flat >= bound
    return torch.from_numpy(flat.numpy() >= bound.numpy())


def _picked(flat: Tensor, mask: Tensor) -> Tensor:
    if not _in_numpy(flat):
        return flat[mask]
    return torch.from_numpy(flat.numpy()[mask.numpy()])


def _places(mask: Tensor) -> Tensor:
    flat = mask.reshape(-1)
    if flat.device.type != "cpu":
        return flat.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(flat.numpy()))


def start(scores: list[Tensor], counts: list[int], pattern: Pattern) -> list[Tensor]:
    """The highest-scored structure with these counts, layer by layer."""
    if pattern.structured:
        return [top_of_blocks(part, pattern) for part in scores]
    return [top(part, count) for part, count in zip(scores, counts, strict=True)]


def stay(
    scores: list[Tensor], active: list[Tensor], keep: list[int], *, together: bool
) -> list[Tensor]:
    """The active weights that are left: ``keep`` of each layer, or their sum over all layers.

    Over all layers the best weight of each stays whatever it scores, so that none is cut off.
    """
    places = [_places(on) for on in active]
    on_scores = [part.reshape(-1)[at] for part, at in zip(scores, places, strict=True)]
    if together:
        for part in on_scores:
            part[part.argmax()] = torch.inf
        chosen = _joined(on_scores, sum(keep))
    else:
        chosen = [top(part, count) for part, count in zip(on_scores, keep, strict=True)]
    masks = [torch.zeros(on.shape, dtype=torch.bool, device=on.device) for on in active]
    for on, at, part in zip(masks, places, chosen, strict=True):
        on.view(-1)[at[part]] = True
    return masks


def grow(
    scores: list[Tensor],
    active: list[Tensor],
    counts: list[int],
    pattern: Pattern,
    *,
    together: bool,
) -> list[Tensor]:
    """``active`` and the best of the others, until each layer (or all together) has its count.

    With an N:M pattern every block is filled up to N.
    """
    scores = [part.float() for part in scores]
    # what is active ranks above all in its block, elsewhere below all: fewer are to be ranked then
    most = torch.finfo(torch.float32).max * (1 if pattern.structured else -1)
    raised = [
        part.add(on, alpha=most) for part, on in zip(scores, factors(active, scores), strict=True)
    ]
    if pattern.structured:
        return [top_of_blocks(part, pattern) for part in raised]
    new = [count - int(torch.count_nonzero(on)) for count, on in zip(counts, active, strict=True)]
    if together:
        grown = _joined(raised, sum(new))
    else:
        grown = [top(part, count) for part, count in zip(raised, new, strict=True)]
    return [on | more for on, more in zip(active, grown, strict=True)]


def _joined(scores: list[Tensor], count: int) -> list[Tensor]:
    chosen = top(torch.cat([part.reshape(-1) for part in scores]), count)
    parts = torch.split(chosen, [part.numel() for part in scores])
    return [part.view(like.shape) for part, like in zip(parts, scores, strict=True)]
