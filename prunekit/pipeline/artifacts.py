"""What a path on the command line means for a target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan
from prunekit.core.run_folder import ONNX, PLAN
from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.networks.saved import is_run, load
from prunekit.pipeline.job import example_input
from prunekit.runtimes import runtime_for
from prunekit.support.errors import FileError, UsageError


def open_artifact(path: str | Path, target: Target, base: str | None = None) -> Artifact:
    """The artifact at ``path`` in the form ``target``'s runtime takes; a run folder has both.

    ``base`` is the dense model of a run that was made from the user's own code.
    """
    runtime = runtime_for(target)
    if not is_run(path):
        if Path(path).is_dir():
            raise FileError(f"{path} is a folder without {PLAN}, not a finished run")
        return Artifact.of_file(path)
    if runtime.artifact_format == "onnx":
        return Artifact.of_file(Path(path) / ONNX)
    plan = ChannelPlan.load(Path(path) / PLAN)
    if plan.base is None or not plan.base.input_shapes:
        raise UsageError(f"{path} does not say its input shape; time its model.onnx instead")
    example = example_input("x".join(map(str, plan.base.input_shapes[0])))
    return replace(live_artifact(load(path, base), example), path=str(path))
