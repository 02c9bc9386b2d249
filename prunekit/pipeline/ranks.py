"""Several processes (torchrun): rank 0 measures, chooses and writes; all ranks train."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from prunekit.errors import PrunekitError

T = TypeVar("T")


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes run this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_main(compute: Callable[[], T]) -> T:
    """What rank 0 computes, on every rank; its errors are every rank's errors.

    The others wait meanwhile, so that nothing of theirs disturbs a measurement on rank 0's device.
    """
    if world() == 1:
        return compute()
    import torch

    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = compute()
        except PrunekitError as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box, src=0, group=_waiting_room())
    if box[1] is not None:
        raise box[1]
    found: T = box[0]
    return found


@cache
def _waiting_room() -> Any:
    """A group of all processes on the CPU, patient enough for a profile on rank 0."""
    import torch
    from accelerate import PartialState

    PartialState()  # joins the process group on first use
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=12))
