"""Several processes (torchrun): rank 0 measures, chooses and writes; all ranks train."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from prunekit.support.errors import PrunekitError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """The number of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes run this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_group_at_exit() -> None:
    """Let the process group go when the program ends, before Python itself is taken down.

    Gloo's threads may hold tensors of the last reduction, and a thread that lets go of one too late
    aborts the process. After an error nothing is done: other processes may still be reducing.
    """
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    import torch

    if getattr(sys, "last_value", None) is None and torch.distributed.is_initialized():
        _waiting_room.cache_clear()
        torch.distributed.destroy_process_group()
        gc.collect()  # networks in cycles, whose wrappers hold the group


def leave_the_group() -> tuple[int, int] | None:
    """(number from 1, count) of this process among torchrun's; it works by itself from then on.

    None without torchrun. The process's own GPU becomes the only one it sees, so that a target
    such as ``torch:cuda`` is that GPU in every process.
    """
    here, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (here.isdigit() and count.isdigit() and int(here) < int(count)):
        return None
    local = os.environ.get("LOCAL_RANK", "")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if local.isdigit() and (not visible or int(local) < len(visible)):
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(local)] if visible else local
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return int(here) + 1, int(count)


def on_rank_zero(compute: Callable[[], T]) -> T:
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
    result: T = box[0]
    return result


@cache
def _waiting_room() -> Any:
    """A group of all processes on the CPU, patient enough for a profile on rank 0."""
    import torch
    from accelerate import PartialState

    PartialState()  # joins the process group on first use
    leave_group_at_exit()
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=12))


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place; the same bits everywhere."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    count = torch.distributed.get_world_size()
    if count == 1:
        return
    by_type: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        torch.distributed.all_reduce(flat)
        flat /= count
        parts = torch.split(flat, [tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if torch.distributed.get_backend() == "nccl" and not tensor.is_cuda:
        on_gpu = tensor.cuda()
        torch.distributed.all_reduce(on_gpu)
        tensor.copy_(on_gpu)
    else:
        torch.distributed.all_reduce(tensor)
