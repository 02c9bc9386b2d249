"""The recipe: every setting of a prune run, from flags and a TOML file, saved with the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from prunekit.core.budget import Budget
from prunekit.core.target import Target
from prunekit.pipeline.recipes.base import TrainingRecipe, read_recipe
from prunekit.support.errors import UsageError
from prunekit.support.parsing import parse_percent

if sys.version_info >= (3, 11):
    pass
else:
    pass


class Recipe(TrainingRecipe):
    """Settings of ``prunekit prune``; field names are the flags' names with underscores."""

    target: str = "onnxruntime:cpu"
    target_latency: str = "50%"
    limit: tuple[str, ...] = ()
    """Further budgets that the plan has to keep, such as ``macs=40%`` or ``params=1.5M``."""
    table: str | None = None
    method: Literal["oneshot", "halp", "iee"] | None = None
    iee: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of method ``iee``: fields of `prunekit.IEESchedule` but ``steps``."""
    criterion: str | None = None
    solver: str = "joint"
    granularity: int | None = Field(None, ge=1)
    keep: tuple[str, ...] = ()
    """Layers whose output channels all stay, by name, pattern or module."""
    min_width: float = Field(0.0, ge=0, lt=1)
    """The share of each group's channels that stays at least; in text ``25%``."""
    depth: bool = False
    """Whole residual blocks may go as well."""
    heads: Literal["whole", "width"] = "whole"
    """What goes of attentions: whole heads, or channels of all heads alike."""
    score_batches: int = Field(8, ge=1)
    pruning_steps: int = Field(8, ge=1)
    profile_nets: int = Field(12, ge=4)
    profile_seconds: float = Field(120.0, gt=0)

    @field_validator("target_latency")
    @classmethod
    def _is_latency(cls, text: str) -> str:
        budget = Budget.parse(text)
        if budget.kind != "latency":
            raise ValueError(f"{text!r} is not a latency; write 50%, 12.5ms or 2x")
        if budget.relative and budget.value >= 1:
            raise ValueError(f"{text!r} is the dense latency; nothing to prune")
        return text

    @field_validator("min_width", mode="before")
    @classmethod
    def _is_share(cls, given: object) -> object:
        return parse_percent(given, "`min_width`") if isinstance(given, str) else given

    @field_validator("limit")
    @classmethod
    def _are_limits(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if Budget.parse(text).kind == "latency":
                raise ValueError(f"{text!r} is a latency; write macs=40% or params=1.5M")
        return texts

    @property
    def limits(self) -> tuple[Budget, ...]:
        """``limit`` as budgets."""
        return tuple(Budget.parse(text) for text in self.limit)

    @property
    def dense_training(self) -> bool:
        """Whether the dense network is trained before it is pruned."""
        return self.dense_epochs is not None or (
            self.from_scratch and self.resolved_method() != "iee"
        )

    def resolved_target(self) -> Target:
        """The target with the input's batch and the threads."""
        return Target.parse(self.target, batch=self.shape[0], threads=self.threads)

    def resolved_method(self) -> str:
        """The method asked for, or ``halp`` where there is training to prune in, else oneshot."""
        trains = self.data is not None and self.epochs >= 2
        return self.method or ("halp" if trains else "oneshot")

    def resolved_criterion(self) -> str:
        """The criterion asked for, or Taylor where there is data, else magnitude."""
        return self.criterion or ("taylor" if self.data is not None else "magnitude")

    def check(self) -> None:
        """Raise UsageError for combinations that cannot work, whatever the method."""
        super().check()
        _ = self.resolved_target()
        self.needs_data(
            ("--from-scratch", self.from_scratch),
            ("--dense-epochs", self.dense_epochs is not None),
            ("--criterion taylor", self.criterion == "taylor"),
            ("--distill", self.distill > 0),
        )
        for name in ("profile_nets", "profile_seconds"):
            if self.table is not None and self.changed(name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for a profile, and --table needs none; "
                    "leave one of them out"
                )


def make_recipe(flags: dict[str, Any], config: Path | None = None) -> Recipe:
    """Flags over the ``config`` file over the defaults; a wrong setting is named."""
    return read_recipe(Recipe, flags, config)
