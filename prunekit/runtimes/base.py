"""What a runtime is: it loads an artifact, runs it, times it and says where time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment, Target, cpu_isa
from prunekit.support.errors import RuntimeUnavailableError, UsageError
from prunekit.support.progress import say
from prunekit.support.registry import runtimes

Arrays = Mapping[str, NDArray[Any]]


class Engine(Protocol):
    """A loaded artifact, ready to run; inputs for timing are bound once, at the target's batch."""

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs`` (name -> array, any batch the artifact takes), in order."""
        ...

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each of ``runs`` runs in a row on the bound inputs, nothing else on."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Profiler(Protocol):
    """A loaded artifact whose runs are watched layer by layer (and so never used for timing)."""

    def run(self, runs: int) -> None:
        """Run it ``runs`` times on bound inputs."""
        ...

    def finish(self) -> list[dict[str, float]]:
        """End, and give per run: layer name -> microseconds, epilogue included.

        The first run after loading is a warm-up and is left out.
        """
        ...


class Runtime(Protocol):
    """One runtime on this machine; constructing it costs nothing and imports nothing heavy."""

    name: str
    artifact_format: str
    """``onnx`` or ``module``: what runs and profiles are made of."""
    formats: tuple[str, ...]
    """All that :meth:`load` takes; :meth:`profiler` takes ``artifact_format``."""
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    casts: bool
    """Whether it computes in the target's precision itself, from an artifact in fp32."""

    # A runtime may also have ``fresh_processes = True``: that it is known by its name in a process
    # of its own, starts there in a moment, and is timed there on the CPU, one process a session.

    def unavailable(self, target: Target) -> str | None:
        """Why ``target`` cannot be used here, with the remedy; None when it can."""
        ...

    def environment(self, target: Target) -> Environment:
        """Device and versions, for the record."""
        ...

    def granularity(self, target: Target) -> int:
        """Channels the device's kernels work in; widths off its multiples waste time."""
        ...

    def load(self, artifact: Artifact, target: Target) -> Engine:
        """An engine for ``artifact``."""
        ...

    def profiler(self, artifact: Artifact, target: Target) -> Profiler | None:
        """A profiler for ``artifact``; layers are named as the model's modules are.

        None where the runtime tells no times of layers: tables are then made by regression.
        """
        ...


def runtime_for(target: Target) -> Runtime:
    """The runtime of ``target``, proved available here; else an error with the remedy."""
    runtime: Runtime = runtimes.get(target.runtime)()
    if target.device.split(":")[0] not in runtime.devices:
        raise RuntimeUnavailableError(
            f"{target}: runtime {target.runtime!r} runs on {', '.join(runtime.devices)}, "
            f"not {target.device}"
        )
    if target.precision not in runtime.precisions:
        raise RuntimeUnavailableError(
            f"{target}: runtime {target.runtime!r} has precision {', '.join(runtime.precisions)} "
            f"here, not {target.precision}"
        )
    if reason := runtime.unavailable(target):
        raise RuntimeUnavailableError(f"{target} is unavailable: {reason}")
    return runtime


def file_precision(runtime: Runtime, target: Target) -> str:
    """The precision that a file for ``target`` is written in."""
    if runtime.casts or target.precision == "tf32":
        return "fp32"
    return target.precision


def timing_inputs(artifact: Artifact, target: Target) -> dict[str, NDArray[Any]]:
    """Fixed pseudo-random float32 inputs of the artifact at the target's batch."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(
            [target.batch if size < 0 else size for size in shape], dtype=np.float32
        )
        for name, shape in artifact.input_shapes.items()
    }


def check_batch(path: str, shapes: Mapping[str, tuple[int, ...]], target: Target) -> None:
    """Refuse inputs that are fixed to another batch than the target's."""
    for name, sizes in shapes.items():
        if sizes and sizes[0] not in (-1, target.batch):
            raise UsageError(
                f"{path}: input {name!r} takes batches of {sizes[0]}, not "
                f"{target.batch}; time it with --batch {sizes[0]}, or export it anew"
            )


def of_kind(array: NDArray[Any], kind: Any) -> NDArray[Any]:
    """A timing input in the type that a model takes.

    Whole-number inputs are indices as a rule: zero is always one of them.
    """
    return array.astype(kind) if np.issubdtype(kind, np.floating) else np.zeros_like(array, kind)


def note_unnamed(path: str, named: float) -> None:
    """Say so where much of the time is in kernels that no name ties to a layer."""
    if named < 0.9:
        say(
            f"note: only {100 * named:.0f} % of the time in {path} is in kernels "
            "whose layer is known by name; the rest is counted to the layer before"
        )


def cpu_granularity() -> int:
    """The channels CPU kernels handle at once: 16 with AVX-512, else 8."""
    return 16 if "avx512f" in cpu_isa() else 8
