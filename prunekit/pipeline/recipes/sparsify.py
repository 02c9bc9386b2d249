"""The recipe of a sparse training: every setting of ``prunekit sparsify``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prunekit.core.density import Pattern, parse_sparsity
from prunekit.core.target import Target
from prunekit.pipeline.recipes.base import TrainingRecipe
from prunekit.pipeline.recipes.flag import Flag
from prunekit.support.errors import UsageError

_ZERO = "What becomes zero"

ON_CPU = ("onnxruntime:cpu", "openvino:cpu")
"""What a sparse network is timed on where no target is named: those of them that are here."""


class SparseRecipe(TrainingRecipe):
    """Settings of ``prunekit sparsify``; field names are the flags' names with underscores."""

    sparsity: Annotated[
        str | None,
        Flag(
            "Share of zeros in the sparse layers, 90% or 0.9; default: 90%, or the pattern's.",
            _ZERO,
        ),
    ] = None
    distribution: Annotated[
        Literal["erk", "uniform"],
        Flag("How layers share it.", _ZERO),
    ] = "erk"
    pattern: Annotated[str, Flag("unstructured, or N:M along the inputs, such as 2:4.", _ZERO)] = (
        "unstructured"
    )
    method: Annotated[
        Literal["iee", "rigl", "set", "gmp", "static"],
        Flag("Training method; static needs no data.", _ZERO),
    ] = "iee"
    criterion: Annotated[
        str,
        Flag(
            "What single weights are worth.",
            _ZERO,
            metavar="NAME",
            plugins="criteria",
            without=("bn_scale", "fpgm", "lamp"),  # which score channels
        ),
    ] = "magnitude"
    ranking: Annotated[
        Literal["layer", "global"],
        Flag("Where weights compete; global: layers exchange weights.", _ZERO),
    ] = "layer"
    dense: Annotated[
        tuple[str, ...],
        Flag(
            "Layer that stays dense beside the first: a name, a module or a pattern such as "
            "layer1.*; may be repeated; none makes the first sparse too.",
            _ZERO,
            metavar="LAYER",
        ),
    ] = ()
    option: Annotated[
        dict[str, bool | int | float | str],
        Flag(
            "Setting of the schedule, such as every=50 (see prunekit.sparsify.SparsitySchedule); "
            "may be repeated.",
            _ZERO,
            metavar="KEY=VALUE",
            example="every=50",
        ),
    ] = Field(default_factory=dict)
    target: Annotated[
        tuple[str, ...],
        Flag(
            "Where dense and sparse are timed, runtime[:device][:precision]; may be repeated; "
            "default: onnxruntime:cpu, and openvino:cpu where it is installed.",
            "Target",
            metavar="TARGET",
            plugins="runtimes",
        ),
    ] = ()

    @property
    def share(self) -> float:
        """The share of zeros asked for."""
        pattern = Pattern.parse(self.pattern)
        if self.sparsity is None:
            return pattern.sparsity if pattern.structured else 0.9
        return parse_sparsity(self.sparsity)

    @property
    def dense_layers(self) -> tuple[str, ...]:
        """``dense`` as the library takes it."""
        from prunekit.networks.weight_layers import FIRST

        named = tuple(name for name in self.dense if name not in ("none", FIRST))
        return named if "none" in self.dense else (FIRST, *named)

    @property
    def trains(self) -> bool:
        """Whether the sparse network is trained."""
        return self.data is not None and self.epochs > 0

    def targets(self) -> list[Target]:
        """Where dense and sparse are timed, with the input's batch and the threads."""
        from prunekit.runtimes import file_precision, runtime_for

        named = self.target or ON_CPU
        targets = [Target.parse(text, batch=self.shape[0], threads=self.threads) for text in named]
        if self.target:
            for target in targets:
                if (needed := file_precision(runtime_for(target), target)) != "fp32":
                    raise UsageError(
                        f"sparse networks are written and timed in fp32, and {target} needs a "
                        f"file in {needed}; name its fp32 target, and `prunekit export "
                        f"--precision {needed}` the run"
                    )
        else:
            from prunekit.support.registry import runtimes

            targets = [t for t in targets if runtimes.get(t.runtime)().unavailable(t) is None]
        return targets

    def check(self) -> None:
        """Raise UsageError for combinations that cannot work, whatever the method."""
        from prunekit.networks.weight_layers import FIRST  # a command's help needs no torch

        if self.data is not None and not self.labelled:
            raise UsageError(f"sparsify needs labels, and {self.data} has none; give others")

        super().check()
        _ = self.share
        if "none" in self.dense and FIRST in self.dense:
            raise UsageError("--dense none and --dense first exclude each other; leave one out")
        self.needs_data(
            ("--from-scratch", self.from_scratch),
            ("--dense-epochs", self.dense_epochs is not None),
            ("--distill", self.distill > 0),
        )
        if self.distill and not self.dense_is_trained:
            raise UsageError(
                "--distill needs a trained dense network, which --from-scratch never makes; "
                "add --dense-epochs, or leave --distill out"
            )
