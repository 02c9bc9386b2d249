"""What an engine was built for, and whether it can run here.

An engine is machine code for one kind of GPU and one TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.runtimes.sidecar import load_facts, save_described
from prunekit.support.errors import RuntimeUnavailableError

KIND = "TensorRT engine description"


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built from, with and for.

    ``batches`` are the least, the optimal and the largest; a size of -1 in ``inputs`` is the batch.
    """

    file_sha256: str
    onnx_sha256: str
    precision: str
    device: str
    compute_capability: str
    tensorrt: str
    driver: str
    batches: tuple[int, int, int]
    inputs: dict[str, tuple[int, ...]]
    sparse: bool
    created: str


@dataclass(frozen=True)
class Place:
    """Where an engine is to run."""

    device: str
    compute_capability: str
    tensorrt: str


def save_engine(path: str | Path, plan: bytes, facts: EngineFacts) -> None:
    """Write an engine and its description."""
    save_described(path, plan, facts, KIND)


def load_engine(path: str | Path, place: Place) -> tuple[bytes, EngineFacts]:
    """The engine and its description, refused where it cannot run or is not what was built."""
    remedy = "build it with prunekit export --format tensorrt"
    facts = load_facts(path, EngineFacts, KIND, remedy)
    if reason := refusal(facts, place):
        raise RuntimeUnavailableError(f"{path} {reason}; build it on this machine from its ONNX")
    return Path(path).read_bytes(), facts


def refusal(facts: EngineFacts, place: Place) -> str | None:
    """Why an engine cannot be used at ``place``, or None."""
    for what, built, here in (
        ("TensorRT", facts.tensorrt, place.tensorrt),
        ("device", facts.device, place.device),
        ("compute capability", facts.compute_capability, place.compute_capability),
    ):
        if built != here:
            return f"was built for {what} {built}, and here is {here}"
    return None
