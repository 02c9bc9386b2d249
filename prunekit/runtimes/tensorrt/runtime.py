"""TensorRT: engines built from ONNX files or loaded from disk, run and timed without a framework.

Needs the packages tensorrt and cuda-bindings; PyTorch is imported nowhere here, so that a machine
that only deploys needs none.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment, Target
from prunekit.runtimes.base import (
    Arrays,
    check_batch,
    note_unnamed,
    of_kind,
    timing_inputs,
)
from prunekit.runtimes.nvidia import cuda
from prunekit.runtimes.nvidia.gpu import device_number, gpu_environment, watch
from prunekit.runtimes.tensorrt.build import Build, build_engine, logger, sdk
from prunekit.runtimes.tensorrt.files import EngineFacts, Place, load_engine, save_engine
from prunekit.support.errors import FileError, PrunekitError, RuntimeUnavailableError, UsageError
from prunekit.support.files import sha256_file
from prunekit.support.progress import say

if TYPE_CHECKING:
    import tensorrt as trt

LEAST_VERSION = 10


@dataclass(frozen=True)
class TensorRt:
    """Runs ONNX files, by building an engine, and engines of this device and version.

    ``cold`` overwrites the L2 cache before every timed run; ``graphs`` times replays of a CUDA
    graph, as a deployment that cares for latency would.
    """

    cold: bool = False
    graphs: bool = True
    name: str = "tensorrt"
    artifact_format: str = "onnx"
    formats: tuple[str, ...] = ("onnx", "tensorrt")
    devices: tuple[str, ...] = ("cuda",)
    precisions: tuple[str, ...] = ("fp32", "tf32", "fp16", "int8")
    casts: bool = False

    def unavailable(self, target: Target) -> str | None:
        """Why ``target`` cannot be used: no package, too old a one, no GPU."""
        try:
            trt = sdk()
        except Exception as error:  # its libraries are loaded at import, by several kinds of code
            return f"`import tensorrt` failed: {error}; pip install 'prunekit[tensorrt]'"
        if int(str(trt.__version__).partition(".")[0]) < LEAST_VERSION:
            return f"TensorRT {trt.__version__} is too old; {LEAST_VERSION} or newer is needed"
        return cuda.unavailable(device_number(target))

    def environment(self, target: Target) -> Environment:
        """The GPU, its driver and clocks, and TensorRT's version."""
        return gpu_environment(f"tensorrt {sdk().__version__}", target)

    def granularity(self, target: Target) -> int:
        """What the tensor cores take at once: 8 channels, of int8 32."""
        return 32 if target.precision == "int8" else 8

    def load(self, artifact: Artifact, target: Target) -> TrtEngine:
        """The engine of ``artifact``; an ONNX file is built for, once in a process."""
        plan, facts = _plan_of(artifact, target)
        return TrtEngine(artifact.path, plan, facts, target, self)

    def profiler(self, artifact: Artifact, target: Target) -> TrtProfiler:
        """The same engine once more, its layers timed by TensorRT."""
        return TrtProfiler(artifact, target, self)


def place_of(target: Target) -> Place:
    """The GPU of ``target`` and the TensorRT here."""
    environment = TensorRt().environment(target)
    number = device_number(target)
    return Place(environment.device_name, cuda.compute_capability(number), str(sdk().__version__))


def export_engine(
    onnx: Artifact,
    path: str | Path,
    target: Target,
    settings: Build,
    compare: Callable[[Artifact], float],
) -> Artifact:
    """Build the engine of an ONNX file; ``path`` and its description appear if ``compare`` passes.

    ``compare`` gets the engine, and gives how far its outputs are from what they should be.
    """
    plan, facts = _build(onnx, target, settings)
    shown = {"precision": facts.precision, "input_shapes": facts.inputs}
    tried = _folder() / "tried.engine"
    save_engine(tried, plan, facts)
    apart = compare(Artifact.of_file(tried, **shown))
    save_engine(path, plan, facts)
    return Artifact.of_file(path, **shown, apart=apart)


def _plan_of(artifact: Artifact, target: Target) -> tuple[bytes, EngineFacts]:
    if artifact.format == "tensorrt":
        plan, facts = load_engine(artifact.path, place_of(target))
        if facts.precision != target.precision:
            raise UsageError(
                f"{artifact.path} computes in {facts.precision}, and target {target} says "
                f"{target.precision}; use --target tensorrt:{facts.precision}"
            )
        return plan, facts
    settings = Build.for_target(target)
    digest = artifact.sha256 or sha256_file(artifact.path)
    text = f"{digest} {target.device} {target.precision} {sorted(asdict(settings).items())}"
    kept = _folder() / hashlib.sha256(text.encode()).hexdigest()
    if not kept.is_file():
        plan, facts = _build(artifact, target, settings)
        save_engine(kept, plan, facts)
        return plan, facts
    return load_engine(kept, place_of(target))


def _build(artifact: Artifact, target: Target, settings: Build) -> tuple[bytes, EngineFacts]:
    from prunekit.runtimes.onnx_graph import check_precision, input_shapes, load_model

    model = load_model(artifact.path)
    # a strongly typed network computes in the types of its file
    wanted = "fp32" if target.precision == "tf32" else target.precision
    check_precision(artifact.path, model, wanted)
    place = place_of(target)
    environment = TensorRt().environment(target)
    cuda.select(device_number(target))  # what a builder times, it times on the selected GPU
    plan = build_engine(artifact.path, settings, place)
    facts = EngineFacts(
        file_sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=sha256_file(artifact.path),
        precision=target.precision,
        device=place.device,
        compute_capability=place.compute_capability,
        tensorrt=place.tensorrt,
        driver=environment.driver,
        batches=settings.batches,
        inputs=input_shapes(model, artifact.path),
        sparse=settings.sparse,
        created=environment.created,
    )
    return plan, facts


@cache
def _folder() -> Path:
    """Where this process keeps the engines that it built."""
    folder = tempfile.mkdtemp(prefix="prunekit-engines-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class _Tensor(NamedTuple):
    """A buffer on the device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Execution:
    """A plan as TensorRT loads it: the engine, its context, and a buffer per tensor."""

    engine: trt.ICudaEngine
    context: trt.IExecutionContext

    def __init__(self, path: str) -> None:
        self.path, self._log = path, logger(sdk())
        self.tensors: dict[str, _Tensor] = {}
        self.outputs: list[str] = []

    def load(self, plan: bytes) -> None:
        """Make engine and context."""
        trt = sdk()
        runtime = trt.Runtime(self._log)
        self.engine = runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise FileError(f"TensorRT cannot load {self.path}: {self._log.last or 'no reason'}")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise RuntimeUnavailableError(
                f"{self.path}: no room on the GPU for its tensors ({self._log.last})"
            )

    def bind(self, device: cuda.Device, inputs: Mapping[str, tuple[int, ...]], batch: int) -> None:
        """Give every tensor a buffer at ``batch``; ``inputs`` are as described beside the file."""
        trt = sdk()
        engine, context = self.engine, self.context
        names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
        into = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if sorted(into) != sorted(inputs):
            raise FileError(f"{self.path}: its inputs are {', '.join(into)}, not as described")
        for name in into:
            sizes = tuple(batch if s < 0 else s for s in inputs[name])
            if not context.set_input_shape(name, sizes):
                raise UsageError(f"{self.path}: input {name!r} does not take the sizes {sizes}")
        for name in names:
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise UsageError(f"{self.path}: the size of {name!r} depends on the data")
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            address = device.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            if not context.set_tensor_address(name, address):
                raise UsageError(f"{self.path}: tensor {name!r} takes no buffer")
            self.tensors[name] = _Tensor(address, shape, dtype)
        self.outputs = [name for name in names if name not in into]

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        if not self.context.execute_async_v3(stream):
            raise RuntimeUnavailableError(f"{self.path} does not run: {self._log.last}")

    def watched_by(self, profiler: Any) -> None:
        """Have ``profiler`` told the time of every layer."""
        self.context.profiler = profiler

    def close(self) -> None:
        """Free context and engine; the buffers are the device's."""
        self.context = self.engine = None


class TrtEngine:
    """An engine with its own stream and buffers; timing replays one CUDA graph."""

    def __init__(
        self, path: str, plan: bytes, facts: EngineFacts, target: Target, settings: TensorRt
    ) -> None:
        self.path, self.facts, self._cold = path, facts, settings.cold
        least, best, most = facts.batches
        if not least <= target.batch <= most:
            raise UsageError(
                f"{path} takes batches of {least} to {most}, not {target.batch}; "
                f"time it with --batch {best}, or build it anew"
            )
        check_batch(path, facts.inputs, target)
        self._batch = target.batch
        self._execution = _Execution(path)
        self._device: cuda.Device | None = cuda.Device(device_number(target))
        try:
            self._execution.load(plan)
            self._execution.bind(self._open(), facts.inputs, target.batch)
            self._put(timing_inputs(self._artifact(), target))
            self.enqueue()  # the first run allocates, which a capture may not
            self._device.wait()
            self._graph = self._captured() if settings.graphs else None
        except BaseException:
            self.close()
            raise

    def _artifact(self) -> Artifact:
        return Artifact(self.path, "tensorrt", input_shapes=self.facts.inputs)

    def _put(self, feeds: Arrays) -> None:
        for name in self.facts.inputs:
            tensor = self._execution.tensors[name]
            array = of_kind(np.asarray(feeds[name]), tensor.dtype)
            self._open().put(np.ascontiguousarray(array, tensor.dtype), tensor.address)

    def enqueue(self) -> None:
        """Put one run on the stream."""
        self._execution.enqueue(self._open().stream)

    def _captured(self) -> Any:
        try:
            return self._open().capture(self.enqueue)
        except PrunekitError as error:
            say(f"note: {self.path} cannot be captured as a CUDA graph ({error}); it is enqueued")
            return None

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``; other batches than the target's go through it in pieces."""
        missing = [name for name in self.facts.inputs if name not in inputs]
        if missing:
            raise UsageError(
                f"{self.path}: no input {missing[0]!r}; it takes {', '.join(self.facts.inputs)}"
            )
        given = {name: np.asarray(inputs[name]) for name in self.facts.inputs}
        for name, array in given.items():
            if array.shape[1:] != self._execution.tensors[name].shape[1:] or not array.shape:
                raise UsageError(f"{self.path} does not run on {name} {list(array.shape)}")
        count = len(next(iter(given.values())))
        pieces = [
            self._piece({name: array[start : start + self._batch] for name, array in given.items()})
            for start in range(0, count, self._batch)
        ]
        return [np.concatenate(parts)[:count] for parts in zip(*pieces, strict=True)]

    def _piece(self, feeds: Arrays) -> list[NDArray[Any]]:
        """One run at the target's batch, which the last row fills up."""
        self._put({name: _filled(array, self._batch) for name, array in feeds.items()})
        self.enqueue()
        self._open().wait()
        return [
            self._open().get(*self._execution.tensors[name]) for name in self._execution.outputs
        ]

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each run on the device, between events on its stream."""
        device, graph = self._open(), self._graph
        work = self.enqueue if graph is None else lambda: device.launch(graph)
        samples = [device.time_ms(work, cold=self._cold) for _ in range(runs)]
        watch(device.number)
        return samples

    def watched_by(self, profiler: Any) -> None:
        """Have TensorRT tell the time of every layer of each run from now on."""
        self._execution.watched_by(profiler)

    def _open(self) -> cuda.Device:
        if self._device is None:
            raise UsageError(f"{self.path}: the engine is closed")
        return self._device

    def wait(self) -> None:
        """Until the last run is done."""
        self._open().wait()

    def close(self) -> None:
        """Free the engine and its buffers."""
        self._graph = None
        self._execution.close()
        if self._device is not None:
            self._device.close()
        self._device = None


def _filled(array: NDArray[Any], batch: int) -> NDArray[Any]:
    if len(array) == batch:
        return array
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


class TrtProfiler:
    """An engine whose layers TensorRT times; its times are shares, not latencies."""

    def __init__(self, artifact: Artifact, target: Target, settings: TensorRt) -> None:
        from prunekit.runtimes.onnx_graph import read

        if artifact.format != "onnx":
            raise UsageError(f"{artifact.path}: layers are timed from an ONNX file, not an engine")
        self._layers = read(artifact.path)
        self._engine = replace(settings, graphs=False).load(artifact, target)
        self._recorder = _recorder(sdk())
        self._engine.watched_by(self._recorder)
        self._runs: list[list[tuple[str, float]]] = []

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        for _ in range(runs):
            self._recorder.seen = []
            self._engine.enqueue()
            self._engine.wait()
            self._runs.append(self._recorder.seen)

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        from prunekit.runtimes.tensorrt.names import layer_times

        self._engine.close()
        runs, named = layer_times(self._runs[1:], self._layers)
        note_unnamed(self._layers.path, named)
        return runs


def _recorder(trt: Any) -> Any:
    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.seen: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seen.append((layer_name, float(ms)))

    return Recorder()
