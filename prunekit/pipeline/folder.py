"""The run folder: what lies where, and what may be overwritten or resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import FileError, UsageError
from prunekit.pipeline.recipe import Recipe, make_recipe

RECIPE = "config.toml"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; ``work`` holds what only an unfinished run needs."""

    path: Path

    @property
    def work(self) -> Path:
        """Checkpoints and intermediate results; removed when the run is done."""
        return self.path / "work"

    @property
    def report(self) -> Path:
        """``report.json``: the last file written."""
        return self.path / "report.json"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.report.is_file()

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to ``log.jsonl``."""
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {file.name}: {error.strerror or error}") from error

    def clear_work(self) -> None:
        """Remove checkpoints and intermediate results."""
        shutil.rmtree(self.work, ignore_errors=True)


def open_folder(path: Path, recipe: Recipe, *, overwrite: bool, resume: bool) -> RunFolder:
    """Make or reopen the folder of a run, and put the recipe there.

    An existing folder is an error unless ``overwrite`` (only a run's own folder is ever removed)
    or ``resume`` (only with the same recipe).
    """
    folder = RunFolder(path)
    check_folder(path, recipe, overwrite=overwrite, resume=resume)
    if path.is_dir() and overwrite and not resume:
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make folder {path}: {error.strerror or error}") from error
    recipe.save(path / RECIPE)
    return folder


def check_folder(path: Path, recipe: Recipe, *, overwrite: bool, resume: bool) -> None:
    """Refuse, before any work, an output folder that cannot be used."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; keep one")
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"output {path} is a file; give a folder")
    has_recipe = (path / RECIPE).is_file()
    if not any(path.iterdir()):
        return
    if not (overwrite or resume):
        raise UsageError(f"output folder {path} exists; use --overwrite, --resume or another -o")
    if not has_recipe:
        raise UsageError(f"{path} is not a prunekit run ({RECIPE} is missing); give another -o")
    if resume:
        before = make_recipe({}, path / RECIPE)
        if difference := recipe.first_difference(before):
            raise UsageError(f"cannot resume {path}: {difference}; use the same settings")
