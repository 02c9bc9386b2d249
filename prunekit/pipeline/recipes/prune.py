"""The recipe: every setting of a prune run, from flags and a TOML file, saved with the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from prunekit.core.budget import Budget
from prunekit.core.target import Target
from prunekit.pipeline.recipes.base import TrainingRecipe, read_recipe
from prunekit.pipeline.recipes.flag import Flag
from prunekit.support.errors import UsageError
from prunekit.support.parsing import parse_percent, parse_share, share_of

_GOES = "What goes"


class Recipe(TrainingRecipe):
    """Settings of ``prunekit prune``; field names are the flags' names with underscores."""

    target: Annotated[
        str,
        Flag("runtime[:device][:precision]; see prunekit targets.", "Target", plugins="runtimes"),
    ] = "onnxruntime:cpu"
    target_latency: Annotated[str, Flag("50% of dense, 12.5ms, or 2x faster.", "Target")] = "50%"
    confidence: Annotated[
        float,
        Flag(
            "How sure it must be, on this machine, that the deployed file is within the target.",
            "Target",
        ),
    ] = Field(0.95, ge=0.5, le=0.999)
    limit: Annotated[
        tuple[str, ...],
        Flag(
            "One more budget, such as macs=40%, params=1.5M (of convolutions and linear layers) or "
            "memory=8MiB (weights and activations); may be repeated.",
            "Target",
            metavar="BUDGET",
        ),
    ] = ()
    table: Annotated[
        str | None, Flag("A latency table made before; default: profile now.", "Measurements")
    ] = None
    method: Annotated[
        Literal["oneshot", "halp", "iee"] | None,
        Flag("Pruning method; default: halp where it can train.", _GOES),
    ] = None
    iee: Annotated[
        dict[str, bool | int | float | str],
        Flag(
            "Option of method iee, such as omega=0.3 (see prunekit.IEESchedule); may be repeated.",
            _GOES,
            metavar="KEY=VALUE",
            example="omega=0.3",
        ),
    ] = Field(default_factory=dict)
    criterion: Annotated[
        str | None,
        Flag(
            "What channels are worth; default: taylor where there are labels, reconstruction where "
            "there are images alone, else magnitude.",
            _GOES,
            metavar="NAME",
            plugins="criteria",
        ),
    ] = None
    solver: Annotated[
        str,
        Flag(
            "What chooses the widths, with options as in joint:gap=1e-3.",
            _GOES,
            metavar="NAME",
            plugins="allocators",
        ),
    ] = "joint"
    granularity: Annotated[
        int | None, Flag("Widths are multiples of this; default: the target's.", _GOES)
    ] = Field(None, ge=1)
    keep: Annotated[
        tuple[str, ...],
        Flag(
            "Layers whose output channels all stay: a name, a module or a pattern such as "
            "layer4.*; may be repeated.",
            _GOES,
            metavar="LAYER",
        ),
    ] = ()
    min_width: Annotated[
        float,
        Flag(
            "Share of each group's channels that stays at least, such as 25%.",
            _GOES,
            metavar="SHARE",
            as_text=True,
        ),
    ] = Field(0.0, ge=0, lt=1)
    depth: Annotated[bool, Flag("Whole residual blocks may go as well.", _GOES)] = False
    heads: Annotated[
        Literal["whole", "width"],
        Flag("What goes of attentions: whole heads, or width of all heads alike.", _GOES),
    ] = "whole"
    repair: Annotated[
        Literal["none", "norms", "bias", "least-squares", "auto"] | None,
        Flag(
            "How the slim network is repaired before any training; auto: by what is best on images "
            "held out; default: auto where there are images and nothing is trained, else none.",
            _GOES,
        ),
    ] = None
    score_batches: Annotated[int, Flag("Batches that one-shot scores use.", _GOES)] = Field(8, ge=1)
    pruning_steps: Annotated[int, Flag("Pruning steps of halp.", _GOES)] = Field(8, ge=1)
    profile_nets: Annotated[int, Flag("Networks the profile measures.", "Measurements")] = Field(
        12, ge=4
    )
    profile_error: Annotated[
        float,
        Flag(
            "The profile ends when its error on networks left out is at most this, such as 4%; "
            "0%: after all rounds.",
            "Measurements",
            metavar="SHARE",
            as_text=True,
        ),
    ] = Field(0.04, ge=0, lt=1)
    shipped: Annotated[
        bool,
        Flag(
            "Calibrate a table that comes with the package, where one has the network's layers, "
            "instead of profiling.",
            "Measurements",
        ),
    ] = True
    profile_seconds: Annotated[float, Flag("Time limit of the profile.", "Measurements")] = Field(
        120.0, gt=0
    )

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

    @field_validator("profile_error", mode="before")
    @classmethod
    def _is_error(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        if share_of(given) == 0:  # measures all rounds
            return 0.0
        return parse_share(given, "`profile_error`")

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
        trains = self.labelled and self.epochs >= 2
        return self.method or ("halp" if trains else "oneshot")

    def resolved_repair(self) -> Literal["none", "norms", "bias", "least-squares", "auto"]:
        """The repair asked for, or auto where there are images and nothing is trained."""
        trains = self.data is None or (self.labelled and self.epochs > 0)
        return self.repair or ("none" if trains else "auto")

    def resolved_criterion(self) -> str:
        """The criterion asked for, or Taylor where there are labels.

        Of images without labels what least squares cannot repair, and without any magnitude.
        """
        unlabelled = "magnitude" if self.data is None else "reconstruction"
        return self.criterion or ("taylor" if self.labelled else unlabelled)

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
        if self.data is None and self.repair in ("norms", "least-squares"):
            raise UsageError(
                f"--repair {self.repair} needs images; add --data images:PATH, or use bias"
            )
        for name in ("profile_nets", "profile_seconds", "profile_error", "shipped"):
            if self.table is not None and self.changed(name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for a profile, and --table needs none; "
                    "leave one of them out"
                )


def make_recipe(flags: Mapping[str, object], config: Path | None = None) -> Recipe:
    """Flags over the ``config`` file over the defaults; a wrong setting is named."""
    return read_recipe(Recipe, flags, config)
