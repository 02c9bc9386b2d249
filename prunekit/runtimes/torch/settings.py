"""How PyTorch is timed, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from prunekit.core.target import Environment, Target, cpu_environment
from prunekit.runtimes.nvidia.gpu import gpu_environment


@dataclass(frozen=True)
class TorchSettings:
    """How networks run on GPUs.

    ``graphs`` times replays of a CUDA graph, ``compiled`` goes through ``torch.compile``, ``cold``
    overwrites the L2 cache before every timed run. ``channels_last``: None is yes where tensor
    cores compute (all but fp32).
    """

    cold: bool = False
    graphs: bool = True
    compiled: bool = False
    channels_last: bool | None = None


def torch_environment(target: Target) -> Environment:
    """The processor, or the GPU with its driver and clocks, and PyTorch's version."""
    import torch

    version, cudnn = f"torch {torch.__version__}", cast(Any, torch.backends.cudnn)
    if target.device == "cpu":
        return cpu_environment(version)
    return gpu_environment(version, target, {"cudnn": str(cudnn.version())})
