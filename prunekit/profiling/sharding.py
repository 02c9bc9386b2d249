"""Shares of one profile's networks, for several machines, GPUs or jobs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from prunekit.core.graph import ChannelGraph
from prunekit.profiling.request import HarvestPlan
from prunekit.support.errors import UsageError
from prunekit.support.processes import leave_the_group

T = TypeVar("T")
Shard = tuple[int, int]
"""(number from 1, count)."""


def parse_shard(text: str) -> Shard:
    """``2/4``, or with ``auto`` the place of this process among torchrun's.

    With ``auto`` the process is on its own from then on.
    """
    if text == "auto":
        shard = leave_the_group()
        if shard is None:
            raise UsageError(
                "--shard auto needs RANK and WORLD_SIZE, which torchrun sets; without it write "
                "--shard 1/4, 2/4, ..."
            )
        return shard
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"cannot read --shard {text!r}; write 1/4 to 4/4, or auto")
    return int(match[1]), int(match[2])


def shard_path(path: Path, shard: Shard) -> Path:
    """``table.json`` as ``table.2of4.json``: every shard writes a file of its own."""
    number, count = shard
    return path.with_name(f"{path.stem}.{number}of{count}{path.suffix}")


def profile_text(name: str, graph: ChannelGraph, plan: HarvestPlan, granularity: int) -> str:
    """What all shards of one profile are called: the model, and a hash of what they share."""
    shared = graph.fingerprint, graph.input_shapes, granularity, plan.nets, plan.seed
    digest = hashlib.sha256(repr(shared).encode()).hexdigest()[:8]
    return f"{name or graph.fingerprint} ({digest})"


def share_of(networks: Sequence[T], shard: Shard) -> list[T]:
    """The first network, which is the reference of all shards, and this shard's of the others.

    The others are dealt out in turn, so that each shard has narrow and wide ones.
    """
    number, count = shard
    first, *others = networks
    if count > len(others):
        raise UsageError(
            f"--shard {number}/{count}: besides the dense network there are only {len(others)} to "
            f"share out; give --nets {count + 1} or more, or fewer shards"
        )
    return [first, *others[number - 1 :: count]]
