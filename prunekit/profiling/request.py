"""What a profile is asked for: a model on a target, and how much to measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph
from prunekit.core.target import Target
from prunekit.support.errors import UsageError


@dataclass(frozen=True)
class HarvestPlan:
    """How much to measure: ``nets`` networks (the dense one included), each in ``rounds`` rounds.

    A round gives each network ``turns`` turns of about ``turn_ms``. Half of the networks are drawn
    at random; with ``active`` the others are chosen while measuring, else all are random. It ends
    early when the error on networks left out reaches ``target_error`` or when another round would
    not end within ``max_seconds``, but never before ``min_rounds`` rounds. A network is loaded anew
    for a round where that takes at most the share ``anew`` of it. ``shard`` (number from 1, count)
    takes a share of the networks, none of them chosen.
    """

    nets: int = 12
    rounds: int = 8
    turns: int = 4
    seed: int = 0
    max_seconds: float = 120.0
    min_rounds: int = 2
    shard: tuple[int, int] = (1, 1)
    active: bool = True
    target_error: float = 0.0
    turn_ms: float = 12.0
    anew: float = 0.15

    def __post_init__(self) -> None:
        for name, least in (("nets", 2), ("rounds", 1), ("turns", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"`{name}` is {getattr(self, name)}; the least is {least}")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"`shard` is {self.shard}; write (1, 4) to (4, 4)")
        if math.isnan(self.max_seconds) or not self.target_error >= 0:
            raise UsageError(
                f"`max_seconds` {self.max_seconds:g} and `target_error` {self.target_error:g} must "
                "be numbers, the latter at least 0"
            )

    @property
    def whole(self) -> bool:
        """Whether it is all of a profile, and no shard of one."""
        return self.shard == (1, 1)


@dataclass(frozen=True)
class ProfileRequest:
    """A latency table wanted of ``model`` on ``target``, whatever its layer times come from.

    ``example`` is the model's input, ``name`` what tables call it. ``granularity``: None for what
    the device itself tells. Every finished round goes to ``journal`` at once; with ``resume`` its
    rounds are kept and only the missing ones measured. ``dense`` is the model's ONNX file in fp32
    if there is one; else it is exported.
    """

    model: nn.Module
    graph: ChannelGraph
    example: Any
    target: Target
    plan: HarvestPlan = HarvestPlan()
    name: str = ""
    granularity: int | None = None
    journal: Path | None = None
    resume: bool = False
    dense: Artifact | None = None
