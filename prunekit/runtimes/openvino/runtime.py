"""OpenVINO: timing on tensors made once, and layer times from its performance counters."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment, Target, cpu_environment
from prunekit.runtimes.base import (
    Arrays,
    check_batch,
    cpu_granularity,
    note_unnamed,
    of_kind,
    timing_inputs,
)
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError

_DEVICE = "CPU"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_RENEW_AFTER = 16
"""Profiled runs between fresh counters: what one run took is lost in a mean of many."""
_READ_EVERY_MS = 4.0
"""Profiled time between readings: a reading takes 0.1 ms and empties the caches for a run."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class OpenVino:
    """Runs ONNX files and IR with OpenVINO, which computes in the target's precision by itself."""

    name = "openvino"
    artifact_format = "onnx"
    formats = ("onnx", "openvino")
    devices = ("cpu",)
    precisions = ("fp32", "bf16")
    casts = True
    fresh_processes = True

    def unavailable(self, target: Target) -> str | None:
        """Why ``target`` cannot be used: no package, no CPU plugin, a CPU without bf16."""
        try:
            core = _core()
        except ImportError as error:
            return f"`import openvino` failed: {error}; pip install openvino"
        if _DEVICE not in core.available_devices:
            return "this openvino has no CPU plugin; pip install --force-reinstall openvino"
        able = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if target.precision == "bf16" and "BF16" not in able:
            return (
                f"OpenVINO computes in {', '.join(able)} on this processor, not in BF16 (that "
                "takes AVX-512 BF16 or AMX); use openvino:cpu"
            )
        return None

    def environment(self, target: Target) -> Environment:  # noqa: ARG002
        """The processor and OpenVINO's version, with its build among the packages."""
        build = str(_ov().__version__)
        return cpu_environment(f"openvino {build.partition('-')[0]}", {"openvino": build})

    def granularity(self, target: Target) -> int:  # noqa: ARG002
        """The channel block of the kernels."""
        return cpu_granularity()

    def load(self, artifact: Artifact, target: Target) -> OvEngine:
        """The file compiled for the target's batch, threads and precision."""
        return OvEngine(artifact, target)

    def profiler(self, artifact: Artifact, target: Target) -> OvProfiler:
        """The file compiled a second time, with OpenVINO's counters on."""
        return OvProfiler(artifact, target)


def _ov() -> Any:
    return importlib.import_module("openvino")


@cache
def _core() -> Any:
    return _ov().Core()


def write_ir(onnx: str | Path, path: str | Path) -> None:
    """The ONNX file in OpenVINO's format, weights in fp32: ``path`` and a ``.bin`` beside it."""
    try:
        _ov().save_model(_core().read_model(str(onnx)), str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise FileError(f"cannot write {path}: {_line(error)}") from error


class _Source:
    """A model as its file has it, and what it is compiled for."""

    def __init__(self, artifact: Artifact, target: Target, *, count: bool) -> None:
        self.path, self._target = artifact.path, target
        self._config = _config(target, count=count)
        self.model = _read(artifact)

    def compiled(self, shapes: Shapes) -> Any:
        """The model compiled for inputs of these ``shapes``."""
        known = [port.any_name for port in self.model.inputs]
        if sorted(known) != sorted(name for name, _ in shapes):
            raise UsageError(
                f"{self.path} takes the inputs {', '.join(known)}, not "
                f"{', '.join(name for name, _ in shapes) or 'none'}"
            )
        model = self.model.clone()
        try:
            model.reshape({name: list(sizes) for name, sizes in shapes})
        except RuntimeError as error:
            sizes = ", ".join(f"{name} {list(sizes)}" for name, sizes in shapes)
            raise UsageError(f"{self.path} does not run on {sizes}: {_line(error)}") from error
        try:
            compiled = _core().compile_model(model, _DEVICE, self._config)
        except RuntimeError as error:
            raise FileError(
                f"{self.path} cannot be compiled by OpenVINO ({_line(error)}); export it again"
            ) from error
        _check(compiled, self._target)
        return compiled

    def imported(self, blob: bytes) -> Any:
        """What was compiled and written to ``blob``, loaded once more."""
        compiled = _core().import_model(blob, _DEVICE, self._config)
        _check(compiled, self._target)
        return compiled

    def close(self) -> None:
        """Drop the model."""
        self.model = None


class OvEngine:
    """A compiled model and one request, whose tensors are made once.

    It computes in one stream, tuned for latency, with as many threads as the target says. They are
    not pinned to cores: engines that take turns would all be pinned to the same ones, and so would
    whatever else runs there.
    """

    def __init__(self, artifact: Artifact, target: Target, *, count: bool = False) -> None:
        self.path, self._source = artifact.path, _Source(artifact, target, count=count)
        shapes = artifact.input_shapes or _input_shapes(self._source.model, self.path)
        check_batch(self.path, shapes, target)
        self._feeds = timing_inputs(replace(artifact, input_shapes=shapes), target)
        bound = _shapes(self._feeds)
        self.compiled = self._source.compiled(bound)
        self._other: tuple[Shapes, Any] = (bound, self.compiled)
        self._tensors: list[Any] = []
        self._request = self._bind()
        self._blob: bytes | None = None

    def _bind(self) -> Any:
        request = self.compiled.create_infer_request()
        self._tensors = []
        for port in self.compiled.inputs:
            array = of_kind(self._feeds[port.any_name], port.element_type.to_dtype())
            tensor = _ov().Tensor(array)
            request.set_tensor(port, tensor)
            self._tensors.append(tensor)
        return request

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``; sizes other than the last ones are compiled for first."""
        self._open()
        shapes = _shapes(inputs)
        if shapes != self._other[0]:
            bound = shapes == _shapes(self._feeds)
            self._other = (shapes, self.compiled if bound else self._source.compiled(shapes))
        compiled = self._other[1]
        request = compiled.create_infer_request()
        request.infer(dict(inputs), share_outputs=True)
        return [request.get_output_tensor(i).data.copy() for i in range(len(compiled.outputs))]

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each synchronous run of the bound request."""
        request, clock = self._open(), time.perf_counter
        samples = []
        for _ in range(runs):
            start = clock()
            request.infer(share_outputs=True)
            samples.append((clock() - start) * 1e3)
        return samples

    def counters(self) -> dict[str, int]:
        """Executed node to its mean over all runs so far, whole microseconds (rounded down)."""
        tick = timedelta(microseconds=1)
        counted = self._open().get_profiling_info()
        return {node.node_name: node.real_time // tick for node in counted if node.real_time}

    def renew(self) -> None:
        """Load what was compiled once more: nodes count from nothing again."""
        self._open()
        if self._blob is None:  # of the first load: an imported model cannot be exported again
            self._blob = self.compiled.export_model().getvalue()
        self.compiled = self._source.imported(self._blob)
        self._other = (_shapes(self._feeds), self.compiled)
        self._request = self._bind()

    def _open(self) -> Any:
        if self._request is None:
            raise UsageError(f"{self.path}: the engine is closed")
        return self._request

    def close(self) -> None:
        """Drop the compiled model, its request and its tensors."""
        self._request = self.compiled = self._blob = None
        self._source.close()
        self._other = ((), None)
        self._tensors = []


def _config(target: Target, *, count: bool) -> dict[str, Any]:
    # Left to itself OpenVINO computes in bf16 wherever the processor can.
    return {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[target.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": target.threads,
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": count,
    }


def _check(compiled: Any, target: Target) -> None:
    """Refuse to go on with another precision or fewer threads than asked for."""
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != _PRECISIONS[target.precision]:
        raise RuntimeUnavailableError(
            f"{target}: OpenVINO computes in {precision} instead; use another precision"
        )
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if threads != target.threads:
        raise UsageError(
            f"{target}: OpenVINO runs at most {threads} threads here, not {target.threads}; "
            f"use --threads {threads}"
        )


def _read(artifact: Artifact) -> Any:
    if not Path(artifact.path).is_file():
        raise FileError(f"no artifact at {artifact.path}")
    try:
        model = _core().read_model(artifact.path)
        if not model.outputs:
            raise RuntimeError("no outputs in it")
    except RuntimeError as error:
        raise FileError(
            f"{artifact.path} is not a model OpenVINO can load ({_line(error)}); export it again"
        ) from error
    return model


def _input_shapes(model: Any, path: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for port in model.inputs:
        sizes = tuple(
            size.get_length() if size.is_static else -1 for size in list(port.partial_shape)
        )
        if -1 in sizes[1:]:
            raise UsageError(
                f"{path}: input {port.any_name!r} leaves more than its batch open; "
                "export it with fixed sizes"
            )
        shapes[port.any_name] = sizes
    return shapes


def _shapes(inputs: Arrays) -> Shapes:
    return tuple((name, tuple(np.shape(array))) for name, array in sorted(inputs.items()))


def _line(error: BaseException) -> str:
    """The cause: OpenVINO names the places in its source first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


class OvProfiler:
    """An engine whose nodes are counted; its times are shares, not latencies.

    OpenVINO tells a node's mean over all runs since it was loaded, so the counters are read after
    every run, of small models after every few, and the model is loaded afresh now and then.
    """

    def __init__(self, artifact: Artifact, target: Target) -> None:
        from prunekit.runtimes.onnx_graph import read
        from prunekit.runtimes.openvino.nodes import owners

        self._graph = read(artifact.path)
        self._engine = OvEngine(artifact, target, count=True)
        self._owners = owners(_executed(self._engine.compiled), self._graph)
        self._loads: list[list[dict[str, int] | None]] = [[]]
        self._unread_ms = 0.0

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        for _ in range(runs):
            if len(self._loads[-1]) > _RENEW_AFTER:
                self._read()
                self._engine.renew()
                self._loads.append([])
                self._counted_run()  # a warm-up, as the first after every load
            self._counted_run()

    def _counted_run(self) -> None:
        load = self._loads[-1]
        self._unread_ms += sum(self._engine.time(1))
        load.append(None)
        if len(load) == 1 or self._unread_ms >= _READ_EVERY_MS:
            self._read()

    def _read(self) -> None:
        if self._loads[-1]:
            self._loads[-1][-1] = self._engine.counters()
            self._unread_ms = 0.0

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        from prunekit.runtimes.openvino.nodes import layer_times

        self._read()
        self._engine.close()
        runs, named = layer_times(self._loads, self._owners, self._graph)
        note_unnamed(self._graph.path, named)
        return runs


def _executed(compiled: Any) -> Iterable[Any]:
    """The nodes that OpenVINO runs in place of the model's, in running order."""
    from prunekit.runtimes.openvino.nodes import Executed

    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, stands_for = (_text(facts[key]) for key in ("layerType", "originalLayersNames"))
        yield Executed(
            node.get_friendly_name(),
            kind,
            tuple(filter(None, stands_for.split(","))),
            tuple(
                port.get_source_output().get_node().get_friendly_name() for port in node.inputs()
            ),
        )


def _text(fact: Any) -> str:
    return str(getattr(fact, "value", fact))
