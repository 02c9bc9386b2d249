"""What NVIDIA's management library tells of a GPU: name, driver, clocks, power, throttling."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prunekit.core.target import Environment, Target, cpu_environment
from prunekit.support.errors import RuntimeUnavailableError
from prunekit.support.registry import runtimes

GPU_RUNTIMES = ("tensorrt", "torch", "onnxruntime")
"""The best first."""
LOOK_EVERY_S = 0.05
"""Between two questions to the driver while something is timed."""
_SLOWED = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "temperature (hardware)",
    "SwThermalSlowdown": "temperature (driver)",
    "HwPowerBrakeSlowdown": "external power brake",
}
"""Reasons for lower clocks that are not the user's own settings or idleness, in words."""
_seen: dict[int, set[str]] = {}
_looked: dict[int, float] = {}


def device_number(target: Target) -> int:
    """The GPU that a target such as ``torch:cuda:1`` names."""
    return int(target.device.partition(":")[2] or 0)


def gpu_environment(
    runtime_version: str, target: Target, packages: dict[str, str] | None = None
) -> Environment:
    """The GPU of ``target`` with its driver, clocks and power, and what slowed it meanwhile.

    ``throttled`` covers the time since the environment of this GPU was asked for last.
    """
    number = device_number(target)
    name, driver = f"cuda:{number}", ""
    clocks = ""
    watch(number, force=True)
    with suppress(*_failures()):
        name, driver, clocks = _tell(number)
    if not driver:
        name, driver = _from_tool(number, name)
    throttled = tuple(sorted(_seen.pop(number, ())))
    environment = cpu_environment(runtime_version, packages)
    return replace(
        environment, device_name=name, driver=driver, isa=(), clocks=clocks, throttled=throttled
    )


def watch(number: int, *, force: bool = False) -> None:
    """Note whether the GPU runs slower than it could; at most every :data:`LOOK_EVERY_S`."""
    now = time.monotonic()
    if not force and now - _looked.get(number, -1e9) < LOOK_EVERY_S:
        return
    _looked[number] = now
    with suppress(*_failures()):
        _seen.setdefault(number, set()).update(_slowed(number))


def _nvml() -> Any:
    """The library, started; ImportError or its own error where it is not there."""
    pynvml = importlib.import_module("pynvml")
    pynvml.nvmlInit()
    return pynvml


def _failures() -> tuple[type[BaseException], ...]:
    """What asking the driver can raise; without an answer there is none to record."""
    try:
        return ImportError, importlib.import_module("pynvml").NVMLError
    except ImportError:
        return (ImportError,)


def _handle(pynvml: Any, number: int) -> Any:
    """The GPU that CUDA calls ``number``, by the identity CUDA gives where it can be asked.

    The driver counts all GPUs, CUDA only those that CUDA_VISIBLE_DEVICES leaves.
    """
    from prunekit.runtimes.nvidia import cuda

    try:
        api = cuda.runtime_api()
        where = cuda.call(api.cudaDeviceGetPCIBusId, 32, number)
    except (ImportError, RuntimeError, RuntimeUnavailableError):
        return pynvml.nvmlDeviceGetHandleByIndex(number)
    return pynvml.nvmlDeviceGetHandleByPciBusId(where.split(b"\0")[0])


def _slowed(number: int) -> list[str]:
    pynvml = _nvml()
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(_handle(pynvml, number))
    return [
        words
        for name, words in _SLOWED.items()
        if reasons & getattr(pynvml, f"nvmlClocksEventReason{name}")
    ]


def _tell(number: int) -> tuple[str, str, str]:
    """Name, driver, and clocks and power in words."""
    pynvml = _nvml()
    handle = _handle(pynvml, number)
    facts: list[str] = []
    # Not every GPU tells everything.
    for words, kind in (("SM", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM)):
        with suppress(pynvml.NVMLError):
            now = pynvml.nvmlDeviceGetClockInfo(handle, kind)
            facts.append(f"{words} {now} of {pynvml.nvmlDeviceGetMaxClockInfo(handle, kind)} MHz")
    with suppress(pynvml.NVMLError):
        limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3
        now = pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        facts.append(f"power {now:.0f} of {limit:.0f} W")
    name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
    return _text(name), _text(driver), ", ".join(facts)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _from_tool(number: int, name: str) -> tuple[str, str]:
    """Name and driver as ``nvidia-smi`` tells, where the library's bindings are missing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return name, ""
    query = [tool, f"--id={number}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return name, ""
    shown, _, driver = done.stdout.strip().partition(", ")
    return shown or name, driver


def best_gpu(precision: str = "fp32") -> Target:
    """The best GPU runtime here that has ``precision``, or an error that says what is missing."""
    reasons = []
    for name in GPU_RUNTIMES:
        runtime = runtimes.get(name)()
        target = Target(name, "cuda", precision)
        reason = (
            f"has no precision {precision}"
            if precision not in runtime.precisions
            else runtime.unavailable(target)
        )
        if reason is None:
            return target
        reasons.append(f"{name}: {reason}")
    raise RuntimeUnavailableError(
        f"no GPU runtime here ({'; '.join(reasons)}); on this machine --target onnxruntime:cpu "
        "works in place of --gpu"
    )
