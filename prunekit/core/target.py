"""What is measured where: the target and the environment recorded beside every number."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunekit.support.errors import UsageError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
DEVICES = ("cpu", "cuda")
_DEFAULT_DEVICE = {"tensorrt": "cuda", "onnxruntime_tensorrt": "cuda"}


@dataclass(frozen=True)
class Target:
    """Where and how the artifact runs, written ``runtime[:device][:precision]``.

    Examples:
        >>> print(Target.parse("tensorrt:fp16", batch=8).describe())
        tensorrt:cuda:fp16 fp16, batch 8, 1 thread
        >>> print(Target("onnxruntime"))
        onnxruntime:cpu
    """

    runtime: str
    device: str = "cpu"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1

    @classmethod
    def of(cls, target: Target | str) -> Target:
        """A target as it is, or read."""
        return cls.parse(target) if isinstance(target, str) else target

    @classmethod
    def parse(cls, text: str, *, batch: int = 1, threads: int = 1) -> Target:
        """Read ``onnxruntime:cpu``, ``tensorrt:fp16``, ``torch:cuda:fp16``, ``fake``, ...

        A GPU's number may follow its device (``torch:cuda:1``).
        """
        runtime, *rest = text.strip().lower().split(":")
        if not runtime:
            raise UsageError(f"empty target {text!r}; write for example onnxruntime:cpu")
        target = cls(runtime, _DEFAULT_DEVICE.get(runtime, "cpu"), "fp32", batch, threads)
        for part in rest:
            if part in PRECISIONS:
                target = replace(target, precision=part)
            elif part in DEVICES:
                target = replace(target, device=part)
            elif part.isdigit() and target.device == "cuda":
                target = replace(target, device=f"cuda:{part}")
            else:
                raise UsageError(
                    f"unknown part {part!r} in target {text!r}; "
                    f"devices: {', '.join(DEVICES)}; precisions: {', '.join(PRECISIONS)}"
                )
        if batch < 1 or threads < 1:
            raise UsageError(f"batch and threads must be at least 1, not {batch} and {threads}")
        return target

    def __str__(self) -> str:
        precision = "" if self.precision == "fp32" else f":{self.precision}"
        return f"{self.runtime}:{self.device}{precision}"

    def describe(self) -> str:
        """The whole target in words."""
        plural = "" if self.threads == 1 else "s"
        return f"{self} {self.precision}, batch {self.batch}, {self.threads} thread{plural}"


@dataclass(frozen=True)
class Environment:
    """The device and software a number was measured on."""

    device_name: str
    runtime_version: str
    driver: str = ""
    machine: str = ""
    cores: int = 0
    isa: tuple[str, ...] = ()
    clocks: str = ""
    throttled: tuple[str, ...] = ()
    """What held a GPU's clocks back while it was measured."""
    os: str = ""
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    created: str = ""

    def difference(self, other: Environment) -> str | None:
        """The first fact that makes timings of the two incomparable, in words, or None."""
        for name in ("device_name", "runtime_version", "driver", "isa"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} {_text(mine)!r} against {_text(theirs)!r}"
        return None


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def cpu_environment(runtime_version: str, packages: dict[str, str] | None = None) -> Environment:
    """The environment of the CPU this process runs on."""
    return Environment(
        device_name=_cpu_name(),
        runtime_version=runtime_version,
        machine=platform.machine(),
        cores=usable_cores(),
        isa=cpu_isa(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=packages or {},
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def package_version(name: str) -> str:
    """The version of an installed package; of a loaded module where no distribution has its name.

    ``onnxruntime``, for example, may come from ``onnxruntime-gpu``. Else "unknown".
    """
    try:
        return version(name) or "unknown"
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", "unknown"))


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts: dict[str, str] = {}
    for key, value in pairs:
        facts.setdefault(key.strip(), value.strip())
    return facts


def _cpu_name() -> str:
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    family, model = facts.get("cpu family"), facts.get("model")
    number = f" (family {family} model {model})" if family and model else ""
    return re.sub(r"\s+", " ", name) + number


def cpu_flags() -> frozenset[str]:
    """All features that the processor names."""
    return frozenset((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())


def cpu_isa() -> tuple[str, ...]:
    """The vector instruction sets that decide which kernels a runtime picks."""
    flags = cpu_flags()
    wanted = ("asimd", "sve", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
    return tuple(name for name in wanted if name in flags)
