"""A double of TensorRT and of the CUDA bindings, for the flow of our own code; no GPU is in it.

It behaves as the documentation says TensorRT does. "Engines" are JSON; "device memory" is the
host's, and a run computes with ONNX Runtime, so that outputs are real. Classes without a docstring
stand for TensorRT's of the same name; `fields` are the attributes their objects have.
"""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__version__ = "11.4.0"
failing: dict[str, object] = {}
"""What is to go wrong, by name; and `step`, called in every step of a build."""
built: list[dict] = []
"""Every build: the file, the flags, the profile, the timing cache it was given."""


class BuilderFlag:
    fields = ()
    TF32, SPARSE_WEIGHTS = 7, 8


class NetworkDefinitionCreationFlag:
    fields = ()
    STRONGLY_TYPED = 1


class MemoryPoolType:
    fields = ()
    WORKSPACE = 0


class TensorIOMode:
    fields = ()
    INPUT, OUTPUT = 1, 2


class ILogger:
    fields = ()
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class IProgressMonitor:
    fields = ()


class IProfiler:
    fields = ()


class INetworkDefinition:
    fields = ("num_inputs",)

    def __init__(self, flags):
        self.flags_given, self.path = flags, ""

    @property
    def num_inputs(self):
        return len(self._inputs())

    def _inputs(self):
        return _values(onnx.load(self.path).graph.input)

    def get_input(self, index):
        name, shape, _ = self._inputs()[index]
        return SimpleNamespace(name=name, shape=shape)


class OnnxParser:
    fields = ("num_errors",)

    def __init__(self, network, logger):
        self._network, self.num_errors = network, 0

    def parse_from_file(self, path):
        if "parse" in failing:
            self.num_errors = 1
            return False
        self._network.path = path
        return True

    def get_error(self, index):
        return f"In node 3:\n{failing['parse']}"


class IOptimizationProfile:
    fields = ()

    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):  # noqa: A002 - TensorRT calls them so
        self.shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    fields = ()

    def __init__(self, data):
        self._data = data

    def serialize(self):
        return self._data


class IBuilderConfig:
    fields = ("progress_monitor",)

    def __init__(self):
        self._flags, self._pools, self._profile, self._cache = {BuilderFlag.TF32}, {}, None, None
        self.progress_monitor = None

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile):
        self._profile = profile
        return -1 if "profile" in failing else 0

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache, ignore_mismatch):
        if failing.get("cache") and cache.serialize():
            return False
        self._cache = cache
        return True

    def get_timing_cache(self):
        return ITimingCache(self._cache.serialize() + b"timed;")


class Builder:
    fields = ()

    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 3)
        for step in range(3):
            failing.get("step", lambda: None)()
            if not monitor.step_complete("Tactics", step):
                return None
        monitor.phase_finish("Tactics")
        monitor.step_complete("Building Engine", 0)
        monitor.phase_finish("Building Engine")
        if "build" in failing:
            self._logger.log(ILogger.ERROR, str(failing["build"]))
            return None
        facts = {
            "onnx": network.path,
            "flags": sorted(config._flags),
            "strong": network.flags_given == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED,
            "pools": config._pools,
            "profile": config._profile.shapes,
            "cache": config._cache.serialize().decode(),
            "device": state["device"],
        }
        built.append(facts)
        model = onnx.load(network.path).SerializeToString()
        return json.dumps(facts | {"model": model.hex()}).encode()


class Runtime:
    fields = ()

    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if "deserialize" in failing:
            self._logger.log(ILogger.ERROR, str(failing["deserialize"]))
            return None
        return ICudaEngine(json.loads(serialized_engine))


class ICudaEngine:
    fields = ("num_io_tensors",)

    def __init__(self, facts):
        model = onnx.load_from_string(bytes.fromhex(facts["model"]))
        self._profile = facts["profile"]
        self._nodes = [node.name for node in model.graph.node]
        self._session = onnxruntime.InferenceSession(model.SerializeToString())
        self._into, self._out = _values(model.graph.input), _values(model.graph.output)
        self.num_io_tensors = len(self._into) + len(self._out)

    def _all(self):
        return [*self._into, *self._out]

    def get_tensor_name(self, index):
        return self._all()[index][0]

    def get_tensor_mode(self, name):
        known = name in [into[0] for into in self._into]
        return TensorIOMode.INPUT if known else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return next(kind for known, _, kind in self._all() if known == name)

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    fields = ("profiler",)

    def __init__(self, engine):
        self._engine, self._shapes, self._addresses, self.profiler = engine, {}, {}, None

    def set_input_shape(self, name, shape):
        least, _, most = self._engine._profile[name]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        batch = next(iter(self._shapes.values()))[0]
        shape = next(shape for known, shape, _ in self._engine._all() if known == name)
        return tuple(batch if size < 0 else size for size in shape)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle == STREAM
        if "run" in failing:
            return False
        if state["capturing"]:
            state["captured"] = self._run
        else:
            self._run()
        return True

    def _run(self):
        feeds = {name: self._view(name) for name in self._shapes}
        outputs = self._engine._session.run(None, feeds)
        for (name, _, _), array in zip(self._engine._out, outputs, strict=True):
            self._view(name)[...] = array
        if self.profiler is not None:
            for name, ms in failing.get("layers", [(n, 0.5) for n in self._engine._nodes]):
                self.profiler.report_layer_time(name, ms)

    def _view(self, name):
        shape, kind = self.get_tensor_shape(name), self._engine.get_tensor_dtype(name)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        memory = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(memory, kind).reshape(shape)


def nptype(trt_type):
    """The double's types are NumPy's already."""
    return trt_type


def _values(values):
    return [
        (
            value.name,
            tuple(d.dim_value if d.HasField("dim_value") else -1 for d in _dims(value)),
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in values
    ]


def _dims(value):
    return value.type.tensor_type.shape.dim


# --- CUDA -----------------------------------------------------------------------------------------

STREAM = 77
state: dict = {}


def reset():
    """A machine on which nothing has happened."""
    failing.clear()
    built.clear()
    state.update(capturing=False, captured=None, memory={}, log=[], clock=0.0, device=0)


reset()


def cuda_api():
    """The double of `cuda.bindings.runtime`: status first, as there."""
    ok = 0

    def select(device):
        state["device"] = device
        return (ok,)

    def malloc(size):
        if size > failing.get("memory", 1 << 40):
            return 2, None
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        state["memory"][address] = buffer
        return ok, address

    def free(address):
        del state["memory"][address]
        return (ok,)

    def memcpy(to, source, size, kind, stream):
        ctypes.memmove(to, source, size)
        return (ok,)

    def begin(stream, mode):
        if "capture" in failing:
            return (900,)
        state["capturing"] = True
        return (ok,)

    def end(stream):
        state["capturing"] = False
        return ok, state["captured"]

    def launch(graph, stream):
        state["log"].append("launch")
        graph()
        return (ok,)

    def record(event, stream):
        state["clock"] += 1.5
        event["at"] = state["clock"]
        return (ok,)

    def memset(address, value, size, stream):
        assert size <= len(state["memory"][address])
        state["log"].append(f"flush {size}")
        return (ok,)

    def destroy(what):
        def gone(_):
            state["log"].append(f"destroy {what}")
            return (ok,)

        return gone

    attributes = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrL2CacheSize="l2",
    )
    facts = {"major": 9, "minor": 0, "l2": 1024}
    return SimpleNamespace(
        __name__="cuda.bindings.runtime",
        cudaError_t=SimpleNamespace(cudaSuccess=ok),
        cudaDeviceAttr=attributes,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        cudaGetDeviceCount=lambda: (failing.get("driver", ok), 1),
        cudaGetErrorString=lambda status: (ok, f"error {status}".encode()),
        cudaDeviceGetAttribute=lambda attribute, device: (ok, facts[attribute]),
        cudaDeviceGetPCIBusId=lambda length, device: (ok, b"0000:17:00.0\0\0\0"),
        cudaSetDevice=select,
        cudaStreamCreate=lambda: (ok, STREAM),
        cudaStreamSynchronize=lambda stream: (ok,),
        cudaStreamDestroy=destroy("stream"),
        cudaStreamBeginCapture=begin,
        cudaStreamEndCapture=end,
        cudaGraphInstantiate=lambda graph, flags: (ok, graph),
        cudaGraphDestroy=lambda graph: (ok,),
        cudaGraphExecDestroy=destroy("graph"),
        cudaGraphLaunch=launch,
        cudaEventCreate=lambda: (ok, {}),
        cudaEventRecord=record,
        cudaEventSynchronize=lambda event: (ok,),
        cudaEventElapsedTime=lambda start, stop: (ok, stop["at"] - start["at"]),
        cudaEventDestroy=destroy("event"),
        cudaMalloc=malloc,
        cudaFree=free,
        cudaMemcpyAsync=memcpy,
        cudaMemsetAsync=memset,
    )


# --- the management library -----------------------------------------------------------------------


class NVMLError(Exception):
    """As there."""


def nvml():
    """The double of `pynvml`; `reasons` in :data:`failing` are the clocks' event reasons."""
    bits = ("SwPowerCap", "HwSlowdown", "HwThermalSlowdown", "SwThermalSlowdown")
    flags = {f"nvmlClocksEventReason{name}": 1 << n for n, name in enumerate(bits)}
    flags["nvmlClocksEventReasonHwPowerBrakeSlowdown"] = 64

    def limit(handle):
        raise NVMLError("not told")

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetName=lambda handle: failing.get("name", "Double GPU"),
        nvmlSystemGetDriverVersion=lambda: b"999.1",
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 * kind,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 1500 * kind,
        nvmlDeviceGetPowerUsage=lambda handle: 120_000,
        nvmlDeviceGetEnforcedPowerLimit=limit,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: failing.get("reasons", 0),
        **flags,
    )
