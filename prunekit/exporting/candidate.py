"""Narrow networks as they are timed: for profiles, and for landings on a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan
from prunekit.core.target import Target
from prunekit.exporting.narrow import narrow_onnx
from prunekit.exporting.onnx import export, live_artifact
from prunekit.exporting.precision import lower, lowered_for
from prunekit.networks.slimming import slim
from prunekit.runtimes import Runtime, file_precision
from prunekit.runtimes.base import Arrays


@dataclass
class CandidateBuilder:
    """Makes the artifacts of a model's plans, weights untrained, in the form that a target takes.

    ``dense`` is the model's ONNX file in fp32: narrow networks are cut from it where that is known
    to be right, else exported. ``batches`` are the inputs that ranges of a lower precision are
    taken from; None for noise, which is enough where only the time matters.
    """

    model: nn.Module
    example: Any
    target: Target
    runtime: Runtime
    dense: Artifact | None = None
    batches: Sequence[Arrays] | None = None

    @property
    def live(self) -> bool:
        """Whether the runtime takes modules themselves, and no files."""
        return self.runtime.artifact_format == "module"

    def build(self, plan: ChannelPlan, path: Path) -> Artifact:
        """The network of ``plan``, at ``path`` where it is a file."""
        if self.live:
            return live_artifact(slim(self.model, plan), self.example)
        narrow = None if self.dense is None else narrow_onnx(self.dense, plan, path)
        if self.batches is None:
            return self._lowered(narrow or self._exported(plan, path), path)
        precision = file_precision(self.runtime, self.target)
        if narrow is None:  # the file in fp32 and the one in less are compared with the module
            return export(
                slim(self.model, plan),
                self.example,
                path,
                precision,
                batches=self.batches,
                runtime=self.target.runtime,
            )
        if precision == "fp32":
            return narrow
        return lower(narrow, path, precision, self.batches, self.target.runtime)

    def build_dense(self, plan: ChannelPlan, path: Path) -> Artifact:
        """The network of ``plan``, which removes nothing; others are cut from its file after."""
        if self.live:
            return self.build(plan, path)
        if self.dense is None:
            self.dense = self._exported(plan, path)
        return self._lowered(self.dense, path)

    def _exported(self, plan: ChannelPlan, path: Path) -> Artifact:
        return export(slim(self.model, plan), self.example, path)

    def _lowered(self, exact: Artifact, path: Path) -> Artifact:
        """In the target's precision, beside the file in fp32, which is still to be cut from."""
        lowered = path.with_name(f"{path.stem}-lowered.onnx")
        return lowered_for(exact, self.runtime, self.target, lowered)
