"""PyTorch: live modules on the CPU and on CUDA GPUs, and packages that AOTInductor compiled."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment, Target
from prunekit.runtimes.base import cpu_granularity
from prunekit.runtimes.nvidia.gpu import device_number
from prunekit.runtimes.torch.settings import TorchSettings, torch_environment

if TYPE_CHECKING:
    from prunekit.runtimes.base import Engine, Profiler

_CPU = ("fp32", "bf16")


@dataclass(frozen=True)
class Torch(TorchSettings):
    """Runs live PyTorch modules and AOTInductor packages."""

    name: str = "torch"
    artifact_format: str = "module"
    formats: tuple[str, ...] = ("module", "aotinductor")
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = ("fp32", "tf32", "fp16", "bf16")
    casts: bool = True

    def unavailable(self, target: Target) -> str | None:
        """Why ``target`` cannot be used."""
        try:
            import torch
        except ImportError as error:
            return f"`import torch` failed: {error}; pip install torch"
        if target.device == "cpu":
            if target.precision not in _CPU:
                return f"PyTorch on a CPU is timed in {' and '.join(_CPU)}, not {target.precision}"
            return None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            usable, count = torch.cuda.is_available(), torch.cuda.device_count()
        if not usable:
            if torch.version.cuda is None:
                return f"torch {torch.__version__} is a build without CUDA; install one with it"
            why = " ".join(str(said[0].message).split())[:160] if said else "is there a driver?"
            return f"torch {torch.__version__} sees no CUDA GPU ({why})"
        number = device_number(target)
        if number >= count:
            return f"there is no GPU {number}; torch sees {count}"
        if target.precision in ("tf32", "bf16") and torch.cuda.get_device_capability(number) < (8,):
            return f"{torch.cuda.get_device_name(number)} has no {target.precision}; use fp16"
        return None

    def environment(self, target: Target) -> Environment:
        """The processor, or the GPU with its driver and clocks, and PyTorch's version."""
        return torch_environment(target)

    def granularity(self, target: Target) -> int:
        """The channel block of the kernels; of tensor cores 8."""
        return cpu_granularity() if target.device == "cpu" else 8

    def load(self, artifact: Artifact, target: Target) -> Engine:
        """A copy of the module in the target's precision, or a compiled package."""
        if artifact.format == "aotinductor":
            from prunekit.runtimes.torch.package import PackageEngine

            return PackageEngine(artifact, target, cold=self.cold)
        if target.device == "cpu":
            from prunekit.runtimes.torch.cpu import CpuEngine

            return CpuEngine(artifact, target)
        from prunekit.runtimes.torch.cuda import CudaEngine

        return CudaEngine(artifact, target, self)

    def profiler(self, artifact: Artifact, target: Target) -> Profiler:
        """A copy of the module with a clock at every layer."""
        if target.device == "cpu":
            from prunekit.runtimes.torch.cpu import CpuProfiler

            return CpuProfiler(artifact, target)
        from prunekit.runtimes.torch.cuda import CudaProfiler

        return CudaProfiler(artifact, target, self)
