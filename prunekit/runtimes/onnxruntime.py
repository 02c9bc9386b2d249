"""ONNX Runtime: timing with bound buffers, and layer times from its own profiler."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from prunekit.runtimes.nvidia.gpu import device_number, gpu_environment, watch
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError, first_line

if TYPE_CHECKING:
    from prunekit.runtimes.onnx_graph import OnnxGraph

_LAYOUT_OPS = ("ReorderInput", "ReorderOutput")
"""What the runtime adds around layers that run in its blocked layout; never in the file."""
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntime:
    """Runs ONNX files with Microsoft's ONNX Runtime, which computes in the file's precision."""

    name = "onnxruntime"
    artifact_format = "onnx"
    formats = ("onnx",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions = ("fp32", "tf32", "fp16", "int8")
    casts = False
    fresh_processes = True

    def unavailable(self, target: Target) -> str | None:
        """Why ``target`` cannot be used: the package or its provider for the device is missing."""
        try:
            ort = _ort()
        except ImportError as error:
            return f"`import onnxruntime` failed: {error}; pip install onnxruntime"
        provider = _provider(target)
        if provider not in ort.get_available_providers():
            return (
                f"this onnxruntime {ort.__version__} has no {provider}; pip uninstall onnxruntime, "
                "then pip install onnxruntime-gpu, on a machine with an NVIDIA driver"
            )
        if target.device == "cpu" and target.precision in ("tf32", "fp16"):
            return (
                f"ONNX Runtime's CPU kernels compute {target.precision} networks in fp32; "
                "use onnxruntime:cpu or onnxruntime:cpu:int8"
            )
        return None

    def environment(self, target: Target) -> Environment:
        """The processor, or the GPU with its driver."""
        version = f"onnxruntime {_ort().__version__}"
        if target.device == "cpu":
            return cpu_environment(version)
        return gpu_environment(version, target)

    def granularity(self, target: Target) -> int:
        """The channel block of the kernels."""
        return 8 if target.device.startswith("cuda") else cpu_granularity()

    def load(self, artifact: Artifact, target: Target) -> OrtEngine:
        """A session with one thread pool of the target's size and its buffers bound."""
        return OrtEngine(artifact, target)

    def profiler(self, artifact: Artifact, target: Target) -> OrtProfiler | None:
        """A second session that writes ONNX Runtime's profile."""
        return OrtProfiler(artifact, target)


class OnnxRuntimeTensorRt(OnnxRuntime):
    """ONNX Runtime that hands what it can to TensorRT, and the rest to CUDA."""

    name = "onnxruntime_tensorrt"
    devices = ("cuda",)

    def profiler(self, artifact: Artifact, target: Target) -> None:  # noqa: ARG002
        """None: a network is one node for ONNX Runtime's profiler."""
        return


def _ort() -> Any:
    return importlib.import_module("onnxruntime")


def _provider(target: Target) -> str:
    """The execution provider that a target asks for."""
    if target.runtime == OnnxRuntimeTensorRt.name:
        return "TensorrtExecutionProvider"
    return "CPUExecutionProvider" if target.device == "cpu" else "CUDAExecutionProvider"


class OrtEngine:
    """A session whose inputs and outputs live in buffers made once."""

    def __init__(self, artifact: Artifact, target: Target, profile_prefix: str = "") -> None:
        self.path, self._target = artifact.path, target
        self._session = _session(artifact.path, target, profile_prefix)
        self._binding = self._bind(artifact)

    def _bind(self, artifact: Artifact) -> Any:
        ort, target = _ort(), self._target
        shapes = artifact.input_shapes or _input_shapes(self._session, self.path)
        check_batch(self.path, shapes, target)
        types = {value.name: _TYPES.get(value.type) for value in self._session.get_inputs()}
        feeds = timing_inputs(replace(artifact, input_shapes=shapes), target)
        for name, array in feeds.items():
            kind = types.get(name)
            if kind is None:
                raise UsageError(
                    f"{self.path}: no input {name!r} of a known type; it has {', '.join(types)}"
                )
            feeds[name] = of_kind(array, kind)
        outputs = self.run(feeds)
        device, number = target.device.split(":")[0], device_number(target)
        binding = self._session.io_binding()
        self._bound_values = []
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(array, device, number)
            binding.bind_ortvalue_input(name, value)
            self._bound_values.append(value)
        for output, array in zip(self._session.get_outputs(), outputs, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, number)
            binding.bind_ortvalue_output(output.name, value)
            self._bound_values.append(value)
        return binding

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs for ``inputs``."""
        try:
            outputs: list[NDArray[Any]] = self._session.run(None, dict(inputs))
        except Exception as error:  # the runtime's error types share no base of their own
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise UsageError(
                f"{self.path} does not run on {sizes}: {first_line(error, longest=200)}"
            ) from error
        return outputs

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each run, buffers bound."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter
        samples = []
        for _ in range(runs):
            start = clock()
            run(binding)
            samples.append((clock() - start) * 1e3)
        if self._target.device != "cpu":
            watch(device_number(self._target))
        return samples

    def close(self) -> None:
        """Drop session and buffers."""
        self._binding = self._session = None
        self._bound_values = []


def _session(path: str, target: Target, profile_prefix: str) -> Any:
    ort = _ort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Threads that spin on after a run would take the cores from the session timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    if not Path(path).is_file():
        raise FileError(f"no artifact at {path}")
    try:
        session = ort.InferenceSession(path, options, providers=_providers(target))
    except Exception as error:  # the runtime's error types share no base of their own
        raise FileError(
            f"{path} is not a model ONNX Runtime can load ({first_line(error, longest=200)}); "
            "export it again"
        ) from error
    if (provider := _provider(target)) not in session.get_providers():
        raise RuntimeUnavailableError(
            f"{target}: ONNX Runtime does without its {provider}; check that the CUDA (and "
            "TensorRT) libraries it was built for can be loaded"
        )
    return session


def _providers(target: Target) -> list[Any]:
    """The target's provider, and behind it those that take what it cannot."""
    providers: list[Any] = ["CPUExecutionProvider"]
    if target.device != "cpu":
        number = device_number(target)
        facts = {"device_id": number, "use_tf32": int(target.precision == "tf32")}
        providers.insert(0, ("CUDAExecutionProvider", facts))
        if _provider(target) == "TensorrtExecutionProvider":
            # Which precisions it may use: of a file in fp16 and int8 only those in the file pay.
            able = {
                "device_id": number,
                "trt_fp16_enable": target.precision == "fp16",
                "trt_int8_enable": target.precision == "int8",
            }
            providers.insert(0, ("TensorrtExecutionProvider", able))
    return providers


def _input_shapes(session: Any, path: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in session.get_inputs():
        sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        if -1 in sizes[1:]:
            raise UsageError(
                f"{path}: input {value.name!r} leaves more than its batch open; "
                "export it with fixed sizes"
            )
        shapes[value.name] = sizes
    return shapes


class OrtProfiler:
    """A session that records every kernel; its times are shares, not latencies."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        from prunekit.runtimes.onnx_graph import read

        self._graph = read(artifact.path)
        folder = tempfile.mkdtemp(prefix="prunekit-profile-")
        # Also runs when the profiler is dropped unfinished, and when the process ends.
        self._clean = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            self._engine = OrtEngine(artifact, target, os.path.join(folder, "profile"))
        except BaseException:
            self._clean()
            raise

    def run(self, runs: int) -> None:
        """Run it ``runs`` times."""
        self._engine.time(runs)

    def finish(self) -> list[dict[str, float]]:
        """Layer times of every run but the first, in microseconds."""
        try:
            path = Path(self._engine._session.end_profiling())
            events = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FileError(f"ONNX Runtime's profile cannot be read: {error}") from error
        finally:
            self._engine.close()
            self._clean()
        runs, named = layer_times(events, self._graph)
        note_unnamed(self._graph.path, named)
        return runs[1:]


def layer_times(
    events: Iterable[Mapping[str, Any]], graph: OnnxGraph
) -> tuple[list[dict[str, float]], float]:
    """Per run, layer name to microseconds, and the share of the time whose layer a name told.

    Kernels with no known name (layout reorders, fusions) are counted to the layer before them.
    """
    kernels: list[tuple[float, float, str, str]] = []
    spans: list[tuple[float, float]] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            kernels.append((event["ts"], event["dur"], name, event["args"].get("op_name", "")))
        elif event.get("cat") == "Session" and event["name"] == "model_run":
            spans.append((event["ts"], event["ts"] + event["dur"]))
    kernels.sort(key=lambda kernel: kernel[0])
    first = graph.layers[0] if graph.layers else ""
    runs: list[dict[str, float]] = []
    known = total = 0.0
    position = 0
    for start, end in sorted(spans):
        times: dict[str, float] = {}
        layer = first
        while position < len(kernels) and kernels[position][0] <= end:
            began, took, name, op = kernels[position]
            position += 1
            if began < start:
                continue
            owner = layer_of_kernel(name, graph)
            layer = owner or layer
            times[layer] = times.get(layer, 0.0) + took
            total += took
            known += took if owner or op in _LAYOUT_OPS else 0.0
        runs.append(times)
    return runs, known / total if total else 1.0


def layer_of_kernel(name: str, graph: OnnxGraph) -> str | None:
    """The layer a kernel of this name works for, or None.

    A node kept as it was keeps its name; one in the blocked layout is called after the value it
    makes (``relu_1_nchwc``, ``getitem_3_bn_nchwc``); a fused one has the fusion behind a slash.
    """
    plain = re.sub(r"_token_\d+$", "", name.partition("/")[0].removeprefix("fused "))
    if plain in graph.nodes:
        return graph.nodes[plain]
    value = re.sub(r"(_bn)?_nchwc$", "", plain)
    return graph.values.get(value) or graph.nodes.get(value)
