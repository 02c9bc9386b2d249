"""Weights from files: safetensors, and .pth or .pt of tensors; what lies around them is undone."""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.networks.slimming import named_tensors
from prunekit.support.errors import FileError, UsageError, first_line
from prunekit.support.progress import say

SHOWN = 5
"""Entries that do not fit, of which a message names so many."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and checkpointing put into the middle of names."""
_COUNTERS = ("total_ops", "total_params")
"""Entries that a counter of operations leaves in a network it looked at."""
_AVERAGED = {"ema", "averaged", "avg", "swa", "shadow", "teacher"}
_DEEPEST = 4
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    *(argparse.Namespace, collections.defaultdict, pathlib.PosixPath),
    *(np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")),
    *(_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),  # of NumPy 1 also by that name
    *(_ARRAY, (_ARRAY, "numpy.core.multiarray._reconstruct")),
]
"""What training scripts save beside weights, arguments and NumPy's numbers; none runs code."""


@dataclass(frozen=True)
class Entry:
    """One network's weights among what a file holds; ``name`` says where in it."""

    name: str
    state: Mapping[str, Tensor]
    outside: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether its name says that it is an average over the training (EMA)."""
        return not _AVERAGED.isdisjoint(re.split(r"[._\-\d]", self.name.lower()))

    def fit(self, own: Mapping[str, Tensor]) -> int:
        """How many tensors of a network it has, in their shapes."""
        return sum(n in self.state and self.state[n].shape == t.shape for n, t in own.items())


def load_weights(module: nn.Module, path: str | Path, *, as_saved: bool = False) -> None:
    """Load a safetensors state into ``module``; every name and shape has to fit.

    ``as_saved`` takes over the file's precision too.
    """
    state = read_safetensors(path)
    check_fit(module, state, path)
    if as_saved:
        for name, tensor in named_tensors(module):
            if name in state and tensor.is_floating_point():
                tensor.data = tensor.data.to(state[name].dtype)
    take_state(module, state)


def take_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take ``state``'s values; versions of modules, which some ask for, are the model's own."""
    whole = module.state_dict()
    whole.update(state)
    module.load_state_dict(whole)


def check_fit(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise FileError where names or shapes differ: the first :data:`SHOWN`, and the count."""
    own = module.state_dict()
    wrong = [f"it lacks {name}" for name in own if name not in state]
    wrong += [f"it has {name}, which the model lacks" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        shown = "; ".join(wrong[:SHOWN])
        raise FileError(f"{path} does not fit {type(module).__name__}: {shown}{more}")


def read_weights(path: str | Path, model: nn.Module, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors, .pth or .pt file by the names that ``model`` has for them.

    Wrappers (``{"state_dict": ...}``) and prefixes (``module.``) are undone, and a note says so.
    ``entry`` names one of several sets of weights; without it averages (EMA) are only offered.
    Whether all fits is for :func:`check_fit`. No code in a file is run.
    """
    own = model.state_dict()
    entries = list(_entries(read_tensors(path), own))
    if not entries:
        raise FileError(f"{path} holds no weights by name; save model.state_dict()")
    fits = {id(one): one.fit(own) for one in entries}
    if entry is not None:
        named = [one for one in entries if f"{one.name}.".startswith(f"{entry}.")]
        if not named:
            known = ", ".join(sorted({one.name for one in entries if one.name})) or "none"
            raise UsageError(f"{path} has no --weights-entry {entry!r}; entries: {known}")
        chosen = max(named, key=lambda one: fits[id(one)])
    else:
        whole = max(fits.values())
        best = [one for one in entries if fits[id(one)] == whole]
        chosen = next((one for one in best if not one.averaged), best[0])
        others = dict.fromkeys(one.name for one in best if one.name != chosen.name and whole)
        _tell_others(path, chosen, [name for name in others if name])
    return _cleaned(path, chosen, own)


def _cleaned(path: str | Path, chosen: Entry, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The chosen weights without what tools left among them; notes say what was undone."""
    state = dict(chosen.state)
    counters = [n for n in state if n.rpartition(".")[2] in _COUNTERS and n not in own]
    for name in counters:
        del state[name]
    for name, tensor in own.items():  # files older than these counters of batches lack them
        if name.rpartition(".")[2] == "num_batches_tracked":
            state.setdefault(name, tensor)
    if chosen.name:
        say(f"note: {path}: the weights are those of {chosen.name!r} in it")
    left_out = [*chosen.outside, *counters]
    if left_out:
        many = f"{len(left_out)} {'entry' if len(left_out) == 1 else 'entries'}"
        say(f"note: {path}: {many} left out, {left_out[0]} first")
    return state


def _tell_others(path: str | Path, chosen: Entry, others: list[str]) -> None:
    if others:
        kind = "averaged weights" if not chosen.averaged else "weights"
        say(f"note: {path} has more {kind}: --weights-entry {' or '.join(others)} takes them")


def _entries(content: Mapping[str, Any], own: Mapping[str, Tensor]) -> Iterator[Entry]:
    """Everything in a file that may be the weights of a network whose tensors are ``own``."""
    for where, mapping in _mappings(content, (), _DEEPEST):
        state = {
            _short(n, own): t
            for n, t in mapping.items()
            if isinstance(t, Tensor) and isinstance(n, str)
        }
        if not state:
            continue
        for prefix, wrapper in _prefixes(state, own):
            inner = {
                wrapper + name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            outside = tuple(name for name in state if not name.startswith(prefix))
            yield Entry(".".join((*where, prefix)).rstrip("."), inner, outside)


def _mappings(
    content: Mapping[str, Any], where: tuple[str, ...], deeper: int
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """``content`` and the dictionaries inside of it, by the keys that lead to them."""
    yield where, content
    for key, value in content.items() if deeper else ():
        if isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value):
            yield from _mappings(value, (*where, key), deeper - 1)


def _short(name: str, own: Mapping[str, Tensor]) -> str:
    """A name without what wrappers put into it."""
    if name not in own:
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
    return name


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """What names of ``state`` begin with that the network's lack, and the other way round."""
    names = list(own)
    pairs = {("", ""): None}
    for anchor in (names[:1] + names[-1:]) if names else []:
        parts = anchor.split(".")
        for cut in range(min(len(parts), _DEEPEST)):
            wrapper, inner = "".join(f"{p}." for p in parts[:cut]), ".".join(parts[cut:])
            if not all(name.startswith(wrapper) for name in names):
                break
            for name in state:
                if name == inner or name.endswith(f".{inner}"):
                    pairs[name.removesuffix(inner), wrapper] = None
    return list(pairs)


def read_tensors(path: str | Path) -> Mapping[str, Any]:
    """What a safetensors or torch file holds by name; no code in it is run."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no file {path}")
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix == ".safetensors" or not (start == b"PK" or start[:1] == b"\x80"):
        return read_safetensors(path)
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            raise FileError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise FileError(
            f"{path} holds {type(content).__name__}, not weights by name; save model.state_dict()"
        )
    return content


def _refusal(path: Path, error: Exception) -> str:
    """Why torch did not read a file, in one line."""
    text = str(error)
    if "TorchScript" in text:
        return (
            f"{path} is a TorchScript program, not weights; where it was made, "
            "torch.save(model.state_dict(), FILE)"
        )
    code = re.search(r"GLOBAL (\S+) was not an allowed|Unsupported global: GLOBAL (\S+)", text)
    if code:
        name = next(filter(None, code.groups()))
        return (
            f"{path} cannot be read without running code in it ({name}); where it was made, "
            "torch.save(model.state_dict(), FILE)"
        )
    return f"{path} is truncated or not a file of torch.save ({first_line(error, longest=120)})"


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged one is named in the error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileError(f"no file {path}")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is truncated or not a safetensors file ({error})") from error
