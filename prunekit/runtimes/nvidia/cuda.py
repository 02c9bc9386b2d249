"""CUDA without a framework: streams, events, buffers and graphs, through NVIDIA's own bindings."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit.support.errors import RuntimeUnavailableError


def runtime_api() -> Any:
    """The module ``cuda.bindings.runtime``; ImportError where the package is missing."""
    return importlib.import_module("cuda.bindings.runtime")


def unavailable(number: int) -> str | None:
    """Why GPU ``number`` cannot be used from here."""
    try:
        cudart = runtime_api()
    except ImportError as error:
        return f"`import cuda.bindings.runtime` failed: {error}; pip install cuda-bindings"
    try:
        status, count = cudart.cudaGetDeviceCount()
    except RuntimeError as error:  # the driver library itself cannot be loaded
        return f"the NVIDIA driver cannot be loaded ({error})"
    if status != cudart.cudaError_t.cudaSuccess:
        return f"CUDA finds no usable GPU ({_reason(cudart, status)})"
    if number >= count:
        return f"there is no GPU {number}; CUDA finds {count}"
    return None


def compute_capability(number: int) -> str:
    """Such as ``9.0``."""
    cudart = runtime_api()
    kind = cudart.cudaDeviceAttr
    parts = [
        call(cudart.cudaDeviceGetAttribute, attribute, number)
        for attribute in (
            kind.cudaDevAttrComputeCapabilityMajor,
            kind.cudaDevAttrComputeCapabilityMinor,
        )
    ]
    return ".".join(map(str, parts))


def select(number: int) -> None:
    """Make GPU ``number`` the one that this thread works on."""
    call(runtime_api().cudaSetDevice, number)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a CUDA function gives beside its status; a failure becomes an error with its name."""
    status, *results = function(*arguments)
    cudart = runtime_api()
    if status != cudart.cudaError_t.cudaSuccess:
        name = getattr(function, "__name__", "CUDA")
        raise RuntimeUnavailableError(f"{name} failed: {_reason(cudart, status)}")
    return results[0] if results else None


def _reason(cudart: Any, status: Any) -> str:
    _, text = cudart.cudaGetErrorString(status)
    return text.decode() if isinstance(text, bytes) else str(text)


class Device:
    """One GPU and a stream of its own; everything made here is freed by :meth:`close`."""

    def __init__(self, number: int) -> None:
        self._api = runtime_api()
        self.number = number
        select(number)
        self._stream: Any = call(self._api.cudaStreamCreate)
        self._events = [call(self._api.cudaEventCreate) for _ in range(2)]
        self._buffers: list[int] = []
        self._graphs: list[Any] = []
        self._flush: tuple[int, int] | None = None

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def allocate(self, size: int) -> int:
        """The address of a new buffer of ``size`` bytes."""
        address = int(call(self._api.cudaMalloc, max(1, size)))
        self._buffers.append(address)
        return address

    def free(self, addresses: Sequence[int]) -> None:
        """Give buffers back."""
        for address in addresses:
            self._buffers.remove(address)
            call(self._api.cudaFree, address)

    def put(self, array: NDArray[Any], address: int) -> None:
        """Copy a C-contiguous array to the device, and wait for it."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def get(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Copy an array back, and wait for it."""
        array = np.empty(shape, dtype)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)
        return array

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        call(self._api.cudaMemcpyAsync, to, source, size, kind, self._stream)
        self.wait()

    def wait(self) -> None:
        """Until the stream has nothing left to do."""
        call(self._api.cudaStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """What ``work`` puts on the stream, as a CUDA graph; it is not run."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._api.cudaStreamBeginCapture, self._stream, mode)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(self._stream)  # its failure says nothing new
            raise
        graph = call(self._api.cudaStreamEndCapture, self._stream)
        try:
            made = call(self._api.cudaGraphInstantiate, graph, 0)
        finally:
            call(self._api.cudaGraphDestroy, graph)
        self._graphs.append(made)
        return made

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        call(self._api.cudaGraphLaunch, graph, self._stream)

    def time_ms(self, work: Callable[[], None], *, cold: bool = False) -> float:
        """Milliseconds on the device between two events around ``work``.

        With ``cold`` the L2 cache is overwritten before, outside the time.
        """
        start, end = self._events
        if cold:
            self._overwrite_cache()
        call(self._api.cudaEventRecord, start, self._stream)
        work()
        call(self._api.cudaEventRecord, end, self._stream)
        call(self._api.cudaEventSynchronize, end)
        return float(call(self._api.cudaEventElapsedTime, start, end))

    def _overwrite_cache(self) -> None:
        if self._flush is None:
            attribute = self._api.cudaDeviceAttr.cudaDevAttrL2CacheSize
            size = 2 * int(call(self._api.cudaDeviceGetAttribute, attribute, self.number))
            self._flush = self.allocate(size), size
        call(self._api.cudaMemsetAsync, self._flush[0], 0, self._flush[1], self._stream)

    def close(self) -> None:
        """Free graphs, buffers, events and the stream."""
        if self._stream is None:
            return
        self.wait()
        for graph in self._graphs:
            call(self._api.cudaGraphExecDestroy, graph)
        for address in self._buffers:
            call(self._api.cudaFree, address)
        for event in self._events:
            call(self._api.cudaEventDestroy, event)
        call(self._api.cudaStreamDestroy, self._stream)
        self._graphs, self._buffers, self._events, self._stream = [], [], [], None
