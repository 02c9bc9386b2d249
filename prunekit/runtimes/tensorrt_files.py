"""Engines on disk: ``model.engine`` and beside it ``model.engine.json``, which says what it is.

An engine is machine code for one kind of GPU and one TensorRT. Loading one runs it: load only what
you trust. The description keeps mistakes out, not attackers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import FileError, RuntimeUnavailableError
from prunekit.serialize import load_json, replacing, save_json, sha256_file

VERSION = 1
KIND = "TensorRT engine description"


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built from, with and for.

    ``batches`` are the least, the optimal and the largest; a size of -1 in ``inputs`` is the batch.
    """

    engine_sha256: str
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


def facts_path(engine: str | Path) -> Path:
    """The description of the engine at a path."""
    return Path(f"{engine}.json")


def save_engine(path: str | Path, plan: bytes, facts: EngineFacts) -> None:
    """Write both files; an interrupt leaves no engine rather than one of another description."""
    path = Path(path)
    with replacing(path) as engine, replacing(facts_path(path)) as description:
        engine.write_bytes(plan)
        save_json(description, facts, KIND, VERSION)
        path.unlink(missing_ok=True)


def load_engine(path: str | Path, place: Place) -> tuple[bytes, EngineFacts]:
    """The engine and its description, refused where it cannot run or is not what was built."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no artifact at {path}")
    if not facts_path(path).is_file():
        raise FileError(
            f"{path} has no description {facts_path(path).name} beside it, so that nobody knows "
            "what it was built for; build it with prunekit export --format tensorrt"
        )
    facts = load_json(facts_path(path), EngineFacts, KIND, VERSION)
    if sha256_file(path) != facts.engine_sha256:
        raise FileError(
            f"{path} is not the engine that {facts_path(path).name} describes (edited, damaged or "
            "of another build); build it again"
        )
    if reason := refusal(facts, place):
        raise RuntimeUnavailableError(f"{path} {reason}; build it on this machine from its ONNX")
    return path.read_bytes(), facts


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
