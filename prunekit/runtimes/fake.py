"""A runtime that computes its latency from a formula: everything else can be tested in moments."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunekit.core.artifact import Artifact
from prunekit.core.target import PRECISIONS, Environment, Target
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import UsageError
from prunekit.support.files import sha256_file

if TYPE_CHECKING:
    from prunekit.runtimes.onnx_graph import Anchor, OnnxGraph

_SPEED = {"fp32": 1.0, "tf32": 0.8, "fp16": 0.5, "bf16": 0.5, "int8": 0.3}


@dataclass(frozen=True)
class Fake:
    """Latency in whole blocks of channels, with seeded noise; no run takes any time.

    A layer takes ``layer_us`` plus ``block_us`` per block pair, kernel position and output
    position (and sample); a network ``overhead_us`` on top. Noise is log-normal.
    """

    layer_us: float = 2.0
    block_us: float = 0.004
    overhead_us: float = 10.0
    block: int = 8
    noise: float = 0.02
    name: str = "fake"
    artifact_format: str = "onnx"
    formats: tuple[str, ...] = ("onnx",)
    devices: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = PRECISIONS
    casts: bool = False

    def unavailable(self, target: Target) -> str | None:  # noqa: ARG002
        """Never."""
        return None

    def environment(self, target: Target) -> Environment:  # noqa: ARG002
        """The same everywhere."""
        return Environment(device_name="fake device", runtime_version="1")

    def granularity(self, target: Target) -> int:  # noqa: ARG002
        """The formula's block of channels."""
        return self.block

    def load(self, artifact: Artifact, target: Target) -> FakeEngine:
        """An engine; the ONNX file is read for its layers."""
        return FakeEngine(self, artifact, target)

    def profiler(self, artifact: Artifact, target: Target) -> FakeProfiler:
        """A profiler; the overhead is in no layer."""
        return FakeProfiler(self, artifact, target)

    def layer_times(self, graph: OnnxGraph, target: Target) -> dict[str, float]:
        """Layer name to microseconds, without noise."""
        times: dict[str, float] = {}
        for anchor in graph.anchors:
            times[anchor.layer] = times.get(anchor.layer, 0.0) + self._anchor_us(anchor, target)
        return times

    def _anchor_us(self, anchor: Anchor, target: Target) -> float:
        into, out = math.ceil(anchor.cin / self.block), math.ceil(anchor.cout / self.block)
        # A group reads its own inputs only; a block is the least that is read.
        pairs = out * max(1.0, into / anchor.groups)
        area = max(1, math.prod(anchor.out_hw)) * max(1, math.prod(anchor.kernel))
        speed = _SPEED[target.precision] / target.threads
        return self.layer_us + self.block_us * pairs * area * target.batch * speed


class FakeEngine:
    """Made-up latencies, and outputs from a real run of the file."""

    def __init__(self, settings: Fake, artifact: Artifact, target: Target) -> None:
        self.settings, self._path = settings, artifact.path
        self._graph = _graph(artifact, target)
        self._times = settings.layer_times(self._graph, target)
        self._noise = _noise(artifact)
        self._session: Any = None

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``."""
        from prunekit.runtimes.onnxruntime import OnnxRuntime

        if self._session is None:
            target = Target("onnxruntime", batch=_fixed_batch(self._graph))
            artifact = Artifact(self._path, "onnx", input_shapes=self._graph.inputs)
            runtime = OnnxRuntime()
            if runtime.unavailable(target) is None:
                self._session = runtime.load(artifact, target)
            else:
                self._session = _Reference(self._path)
        outputs: list[NDArray[Any]] = self._session.run(inputs)
        return outputs

    def time(self, runs: int) -> list[float]:
        """Milliseconds by the formula, with noise; returns at once."""
        mean_ms = (sum(self._times.values()) + self.settings.overhead_us) / 1e3
        noise = np.exp(self._noise.standard_normal(runs) * self.settings.noise)
        return [float(value) for value in mean_ms * noise]

    def close(self) -> None:
        """Free the session that outputs came from."""
        self._session = None


class FakeProfiler:
    """Made-up layer times that agree with the engine's latency."""

    def __init__(self, settings: Fake, artifact: Artifact, target: Target) -> None:
        self._spread = settings.noise
        self._times = settings.layer_times(_graph(artifact, target), target)
        self._noise = _noise(artifact)
        self._runs = 0

    def run(self, runs: int) -> None:
        """Count the runs."""
        self._runs += runs

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        shape = (max(0, self._runs - 1), len(self._times))
        noise = np.exp(self._noise.standard_normal(shape) * self._spread)
        means = np.array(list(self._times.values()))
        return [
            dict(zip(self._times, map(float, row), strict=True)) for row in means[None, :] * noise
        ]


class _Reference:
    """The ONNX project's own slow evaluator, for where ONNX Runtime is not installed."""

    def __init__(self, path: str) -> None:
        from onnx.reference import ReferenceEvaluator

        from prunekit.runtimes.onnx_graph import load_model

        self._evaluator = ReferenceEvaluator(load_model(path))

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        outputs = self._evaluator.run(None, dict(inputs))
        return [np.asarray(output) for output in outputs]


def _graph(artifact: Artifact, target: Target) -> OnnxGraph:
    from prunekit.runtimes.onnx_graph import read

    graph = read(artifact.path)
    fixed = _fixed_batch(graph, target.batch)
    if fixed != target.batch:
        raise UsageError(
            f"{artifact.path}: takes batches of {fixed}, not {target.batch}; "
            f"time it with --batch {fixed}, or export it anew"
        )
    return graph


def _fixed_batch(graph: OnnxGraph, default: int = 1) -> int:
    return next((s[0] for s in graph.inputs.values() if s and s[0] > 0), default)


_loads: dict[str, int] = {}


def _noise(artifact: Artifact) -> np.random.Generator:
    """Noise that differs from load to load of a file, and repeats from process to process."""
    digest = artifact.sha256 or sha256_file(artifact.path)
    _loads[digest] = _loads.get(digest, 0) + 1
    seed = hashlib.sha256(f"{digest} {_loads[digest]}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "little"))
