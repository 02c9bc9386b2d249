"""Building engines: an ONNX file becomes a plan for the GPU at hand, in the file's own precision.

Networks are strongly typed, in TensorRT 10 as in 11 (which has no other): every tensor has the
type that the file gives it, and no builder flag makes a network faster and less exact.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.core.target import Target
from prunekit.support.errors import FileError, ModelError, UsageError
from prunekit.support.files import write_bytes
from prunekit.support.progress import Bar, bar, say

if TYPE_CHECKING:
    import tensorrt as trt

    from prunekit.runtimes.tensorrt.files import Place


@dataclass(frozen=True)
class Build:
    """How an engine is built.

    ``batches``: the least, the optimal and the largest. ``tf32`` lets fp32 products round their
    inputs to 10 bits. ``sparse`` lets TensorRT use weights that are zero in two of every four.
    ``workspace_mib`` limits what a layer may use beside its tensors; 0 is no limit.
    """

    batches: tuple[int, int, int]
    tf32: bool = False
    sparse: bool = False
    workspace_mib: int = 0

    def __post_init__(self) -> None:
        least, best, most = self.batches
        if not 1 <= least <= best <= most:
            raise UsageError(
                f"`batches` must rise from at least 1, not {least}, {best}, {most} "
                "(least, optimal, largest)"
            )
        if self.workspace_mib < 0:
            raise UsageError(f"`workspace_mib` must not be negative, not {self.workspace_mib}")

    @classmethod
    def for_target(cls, target: Target) -> Build:
        """For timing at the target's batch, and no other."""
        return cls((target.batch,) * 3, tf32=target.precision == "tf32")


def sdk() -> Any:
    """The package ``tensorrt``; ImportError where it or its libraries are missing."""
    return importlib.import_module("tensorrt")


def build_engine(onnx: str | Path, settings: Build, place: Place) -> bytes:
    """The serialised engine of the ONNX file at ``onnx``.

    Shows progress, and ends on an interrupt. What TensorRT timed is kept for the next build, for
    each device and version apart.
    """
    trt = sdk()
    log = logger(trt)
    builder = trt.Builder(log)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = _parse(trt, network, log, onnx)
    config = builder.create_builder_config()
    _configure(trt, builder, network, config, settings)
    cache = cache_path(place)
    _use_cache(config, cache)
    with ExitStack() as shown:
        monitor = progress_monitor(trt, lambda title, steps: shown.enter_context(bar(title, steps)))
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    del parser  # which holds the weights that the network reads
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ModelError(f"TensorRT cannot build {onnx}: {log.last or 'it gives no reason'}")
    _keep_cache(config, cache)
    return bytes(plan)


def _parse(trt: Any, network: trt.INetworkDefinition, log: Any, onnx: str | Path) -> trt.OnnxParser:
    if not Path(onnx).is_file():
        raise FileError(f"no artifact at {onnx}")
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):
        return parser
    errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
    reason = " ".join((errors or [log.last or "no reason given"])[0].split())
    raise FileError(f"{onnx} is not a model TensorRT can read ({reason[:300]})")


def _configure(
    trt: Any,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    settings: Build,
) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        name, sizes = str(tensor.name), tuple(int(size) for size in tensor.shape)
        if -1 in sizes[1:]:
            raise UsageError(
                f"input {name!r} leaves more than its batch open; export it with fixed sizes"
            )
        fixed = sizes[0] if sizes and sizes[0] >= 0 else None
        if fixed is not None and (fixed,) * 3 != settings.batches:
            raise UsageError(
                f"input {name!r} takes batches of {fixed}, not {settings.batches[1]}; "
                "export it anew"
            )
        low, best, most = ((batch, *sizes[1:]) for batch in settings.batches)
        profile.set_shape(name, min=low, opt=best, max=most)
    if config.add_optimization_profile(profile) < 0:
        raise ModelError("TensorRT refuses the optimisation profile of the inputs' sizes")
    if not settings.tf32:  # on unless said otherwise
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if settings.workspace_mib:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, settings.workspace_mib * 2**20)


def cache_path(place: Place) -> Path:
    """Where the timings of one device and version are kept, in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    parts = (place.device, f"sm{place.compute_capability}", place.tensorrt)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    return Path(home) / "prunekit" / "tensorrt" / f"{name}.timing"


def _use_cache(config: trt.IBuilderConfig, path: Path) -> None:
    known = b""
    with suppress(OSError):
        known = path.read_bytes()
    if known and not config.set_timing_cache(
        config.create_timing_cache(known), ignore_mismatch=False
    ):
        say(f"note: TensorRT does not take the timings kept in {path}; it times anew")
        known = b""
    if not known:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _keep_cache(config: trt.IBuilderConfig, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_bytes(path, bytes(cache.serialize()))
    except FileError as error:
        say(f"note: what TensorRT timed is not kept: {error}")


def logger(trt: Any) -> Any:
    """A log that keeps the last error, and shows warnings to those who want to see more."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(msg.split())[:300]
            elif severity == trt.ILogger.WARNING:
                say(f"TensorRT: {msg}", 1)

    return Log()


def progress_monitor(trt: Any, show: Callable[[str, float], Bar]) -> Any:
    """A monitor that shows the outermost phases, and stops the build on an interrupt."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._lock = threading.Lock()
            self._outer: dict[str, Bar] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guarded(lambda: self._begin(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            self._guarded(lambda: self._advance(phase_name))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._guarded(lambda: self._outer.pop(phase_name, None))

        def _begin(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None and not self._outer:
                self._outer[phase] = show(f"TensorRT: {phase}", float(steps))

        def _advance(self, phase: str) -> None:
            if phase in self._outer:
                self._outer[phase].advance()

        def _guarded(self, work: Callable[[], Any]) -> None:
            # TensorRT calls from several threads, and cannot pass a Python exception on.
            try:
                with self._lock:
                    work()
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()
