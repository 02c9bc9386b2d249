"""A training's state in one safetensors file: tensors, and JSON facts in the header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from prunekit.support.errors import FileError
from prunekit.support.files import write_bytes
from prunekit.train.method_state import Entry, Saved
from prunekit.train.rule import Facts, Tensors

__all__ = ["CHECKPOINT", "load_checkpoint", "pack_optimizer", "save_checkpoint", "unpack_optimizer"]

CHECKPOINT = "checkpoint.safetensors"
_VERSION = 1


def save_checkpoint(path: Path, saved: Saved) -> None:
    """Write tensors and JSON facts atomically; raises FileError where that fails."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in saved.tensors.items()
    }
    text = json.dumps(saved.facts, sort_keys=True)
    header = {
        "prunekit": "checkpoint",
        "version": str(_VERSION),
        "facts": text,
        "sha256": _digest(plain, text),
    }
    write_bytes(path, safetensors.torch.save(plain, metadata=header))


def load_checkpoint(path: Path) -> Saved:
    """What :func:`save_checkpoint` wrote; a damaged or foreign file is named in the FileError."""
    try:
        with path.open("rb"):
            pass  # a missing or forbidden file is told apart from a damaged one
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileError(
            f"checkpoint {path} is damaged ({error}); remove it to start from the beginning"
        ) from error
    except OSError as error:
        raise FileError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    if header.get("prunekit") != "checkpoint":
        raise FileError(f"{path} is not a prunekit checkpoint")
    if header.get("version") != str(_VERSION):
        raise FileError(
            f"checkpoint {path} has version {header.get('version')}, this prunekit reads "
            f"version {_VERSION}; remove it to start from the beginning"
        )
    text = header.get("facts", "")
    if header.get("sha256") != _digest(tensors, text):
        raise FileError(
            f"checkpoint {path} is damaged (its checksum does not match); "
            "remove it to start from the beginning"
        )
    return Saved(tensors, json.loads(text))


def _digest(tensors: Tensors, text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def pack_optimizer(optimizer: Optimizer) -> Saved:
    """The optimizer's state as tensors named ``index.key`` and JSON facts; not its settings."""
    tensors: Tensors = {}
    facts: Facts = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            (tensors if isinstance(value, Tensor) else facts)[f"{index}.{key}"] = value
    return Saved(tensors, facts)


def unpack_optimizer(optimizer: Optimizer, saved: Saved) -> None:
    """Put back what :func:`pack_optimizer` took, into an optimizer over the same parameters."""
    state: dict[int, Entry] = {}
    for name, value in {**saved.tensors, **saved.facts}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
