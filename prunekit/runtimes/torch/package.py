"""AOTInductor packages: a network compiled for one device, deployed without its Python code.

A ``.pt2`` package is machine code. Loading one runs it: load only what you trust.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes.nvidia.gpu import device_number
from prunekit.runtimes.sidecar import load_facts
from prunekit.runtimes.torch.module import DTYPES, TensorEngine
from prunekit.runtimes.torch.settings import torch_environment
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError, first_line
from prunekit.support.threads import threads

KIND = "AOTInductor package description"


@dataclass(frozen=True)
class PackageFacts:
    """What a package was compiled with and for; a size of -1 in ``inputs`` is the batch."""

    file_sha256: str
    target: str
    precision: str
    device: str
    torch: str
    inputs: dict[str, tuple[int, ...]]
    created: str


class PackageEngine(TensorEngine):
    """A package as it is called; it is refused on another device or PyTorch."""

    def __init__(self, artifact: Artifact, target: Target, *, cold: bool = False) -> None:
        facts = _checked(artifact.path, target)
        super().__init__(artifact.path, facts.inputs, target, DTYPES[facts.precision])
        index = -1 if target.device == "cpu" else device_number(target)
        try:
            self._call = torch._inductor.aoti_load_package(artifact.path, device_index=index)
        except (RuntimeError, OSError) as error:
            reason = first_line(error, "no reason given", 200)
            raise FileError(f"{artifact.path} cannot be loaded ({reason}); export it again") from (
                error
            )
        self._cold = cold

    def _during(self) -> AbstractContextManager[None]:
        if self._target.device == "cpu":
            return threads(self._target.threads)
        return nullcontext()

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each run: on a GPU on the device, between events."""
        call, bound = self._opened(), self._bound
        with torch.inference_mode(), self._during():
            if self._target.device != "cpu":
                from prunekit.runtimes.torch.cuda import DeviceClock

                clock = DeviceClock(device_number(self._target), cold=self._cold)
                return clock.time(lambda: call(*bound), runs)
            samples = []
            for _ in range(runs):
                start = time.perf_counter()
                call(*bound)
                samples.append((time.perf_counter() - start) * 1e3)
            return samples


def _checked(path: str, target: Target) -> PackageFacts:
    """The description of a package, refused where it is not what was compiled or not for here."""
    remedy = "make it with prunekit export --format aotinductor"
    facts = load_facts(path, PackageFacts, KIND, remedy)
    if facts.precision != target.precision or facts.target.split(":")[1] != target.device[:4]:
        raise UsageError(f"{path} was compiled for {facts.target}, not {target}; use that target")
    environment = torch_environment(target)
    for what, built, here in (
        ("PyTorch", facts.torch, environment.runtime_version),
        ("device", facts.device, environment.device_name),
    ):
        if built != here:
            raise RuntimeUnavailableError(
                f"{path} was compiled for {what} {built}, and here is {here}; export it here"
            )
    return facts
