"""The folder of a run: the name of every file in it, and what an interrupted run has kept there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from prunekit.support.errors import FileError

RECIPE = "config.toml"
TABLE = "table.json"
LOG = "log.jsonl"
BOARD = "tensorboard"
DENSE = "dense.onnx"
"""The network that everything is compared with."""
DENSE_WEIGHTS = "dense.safetensors"
"""Where the run has trained it."""
ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
PLAN = "plan.json"
SPARSITY = "sparsity.json"
"""Beside the plan of a sparse network, whose channels are all there."""
REPORT = "report.json"
"""The last file that is written: a run that has it is finished."""
PAGE = "report.html"

WORK = "work"
"""Of a run that goes on: checkpoints, and the files below. It is gone when the run is done."""
JOURNAL = f"{WORK}/profile.jsonl"
TRANSFER_JOURNAL = f"{WORK}/transfer.jsonl"
TARGET = f"{WORK}/target.json"
"""The target as a share of the dense latency."""
SECONDS = f"{WORK}/seconds.json"
"""What the stages so far have taken."""
CORRECTION = f"{WORK}/correction.json"
"""The predicted share of the dense latency that methods halp and iee train towards."""
LANDING = f"{WORK}/landing.json"
MENDING = f"{WORK}/mending-{{}}.json"
"""The landing of a trained network that missed, by its number from 1."""
CANDIDATE = f"{WORK}/candidate.onnx"
"""The network that is being measured."""
EXACT = f"{WORK}/dense-fp32.onnx"
"""The dense network in fp32, where ``dense.onnx`` is not."""

REPLACED = ".replaced"
"""Where the run that is overwritten is, until the new one has come to something."""

ARTIFACTS = {
    "dense": DENSE,
    "onnx": ONNX,
    "plan": PLAN,
    "sparsity": SPARSITY,
    "weights": WEIGHTS,
    "recipe": RECIPE,
    "log": LOG,
    "table": TABLE,
    "dense_weights": DENSE_WEIGHTS,
}
"""What a report calls the files it lists."""
FILES = {*ARTIFACTS.values(), REPORT, PAGE, BOARD, WORK}
"""Everything a run writes into its folder."""
_EXPORTED = re.compile(r"model(-\w+)*\.(onnx|xml|bin|pt2(\.json)?|engine(\.json|\.onnx)?)")
"""What ``prunekit export`` writes there later."""
_UNFINISHED = re.compile(r"\..+\.(json|jsonl|toml|onnx|safetensors|html)\.\w{8}")
"""Temporary files of :func:`prunekit.support.files.replacing`."""


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a folder with a plan in it."""
    return (Path(path) / PLAN).is_file()


def is_sparse(path: str | Path) -> bool:
    """Whether ``path`` is a run folder of a sparse network."""
    return is_run(path) and (Path(path) / SPARSITY).is_file()


class Kept(Protocol):
    """What a run can keep: it is written to a file and read from there."""

    def save(self, path: Path) -> None:
        """Write it."""

    @classmethod
    def load(cls: type[K], path: Path) -> K:
        """Read it."""
        ...


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        """Where the file called ``name`` is."""
        return self.path / name

    @property
    def work(self) -> Path:
        """Checkpoints and intermediate results; removed when the run is done."""
        return self / WORK

    @property
    def report(self) -> Path:
        """``report.json``: the last file written."""
        return self / REPORT

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.report.is_file()

    @property
    def has_rounds(self) -> bool:
        """Whether a round of the profile is there to go on from."""
        return (self / TABLE).is_file() or rounds_in(self / JOURNAL) > 0

    @property
    def has_epochs(self) -> bool:
        """Whether an epoch of training is there to go on from."""
        trained = (self / DENSE_WEIGHTS).is_file()
        return trained or any(self.work.glob("*/checkpoint.safetensors"))

    def once(self, name: str, kind: type[K], compute: Callable[[], K]) -> K:
        """What an interrupted part of this run has kept as ``name``, else what ``compute`` gives.

        That is kept from then on; ``compute`` may also write the file itself.
        """
        path = self / name
        if path.is_file():
            return kind.load(path)
        value = compute()
        if not path.is_file():
            value.save(path)
        return value

    def artifacts(self) -> dict[str, str]:
        """Paths of the files that a report lists, of those that are there."""
        paths = {what: self / name for what, name in ARTIFACTS.items()}
        return {what: str(path) for what, path in paths.items() if path.is_file()}

    def log(self, row: Mapping[str, object]) -> None:
        """Append one line to ``log.jsonl``."""
        path = self / LOG
        try:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error

    def clear_work(self) -> None:
        """Remove checkpoints and intermediate results."""
        shutil.rmtree(self.work, ignore_errors=True)


def rounds_in(journal: Path) -> int:
    """Finished rounds in the journal of a profile, which has a head line."""
    try:
        return max(0, journal.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def is_own(name: str) -> bool:
    """Whether a run, or an export from it, writes files called ``name``."""
    known = name in {*FILES, REPLACED} or _EXPORTED.fullmatch(name) is not None
    return known or is_unfinished(name)


def is_unfinished(name: str) -> bool:
    """Whether a process that was killed may leave files called ``name``."""
    return _UNFINISHED.fullmatch(name) is not None
