"""Opening the folder of a run: what may be overwritten, what resumed, and what is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunekit.core.run_folder import (
    RECIPE,
    REPLACED,
    REPORT,
    RunFolder,
    is_own,
    is_unfinished,
)
from prunekit.networks.saved import base_runs
from prunekit.pipeline.recipes.base import TrainingRecipe, read_recipe
from prunekit.support.errors import FileError, UsageError
from prunekit.support.processes import rank


@contextmanager
def open_folder(
    path: Path, recipe: TrainingRecipe, *, overwrite: bool, resume: bool
) -> Iterator[RunFolder]:
    """Make or reopen the folder of a run, and put the recipe there; rank 0 does, for all.

    An existing folder is an error unless ``overwrite`` (only a run's own folder is ever removed)
    or ``resume`` (only with the same recipe). When the block fails before an epoch of training is
    done (on an interrupt: before a round of the profile is), nothing new is left behind.
    """
    folder = RunFolder(path)
    if rank() > 0:
        yield folder
        return
    check_folder(path, recipe, overwrite=overwrite, resume=resume)
    fresh = not (path / RECIPE).is_file() or overwrite
    missing = [part for part in (path, *path.parents) if not part.exists()]
    try:
        if fresh:
            _set_aside(path)
        elif not folder.finished:
            _remove_unfinished(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make folder {path}: {error.strerror or error}") from error
        recipe.save(path / RECIPE)
        if not folder.finished:
            folder.work.mkdir(exist_ok=True)
        yield folder
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if fresh and not (folder.has_epochs or (interrupted and folder.has_rounds)):
            _empty(path)
            _put_back(path)
            for part in missing:
                with suppress(OSError):
                    part.rmdir()
        raise
    shutil.rmtree(path / REPLACED, ignore_errors=True)


def check_folder(path: Path, recipe: TrainingRecipe, *, overwrite: bool, resume: bool) -> None:
    """Refuse, before any work, an output folder that cannot be used."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; keep one")
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"output {path} is a file; give a folder")
    if not any(path.iterdir()):
        return
    if not (overwrite or resume):
        raise UsageError(f"output folder {path} exists; use --overwrite, --resume or another -o")
    if not (path / RECIPE).is_file():
        raise UsageError(f"{path} is not a prunekit run ({RECIPE} is missing); give another -o")
    if resume:
        before = read_recipe(type(recipe), {}, path / RECIPE)
        if difference := recipe.first_difference(before):
            raise UsageError(f"cannot resume {path}: {difference}; use the same settings")
        return
    foreign = sorted(p.name for p in path.iterdir() if not is_own(p.name))
    if foreign:
        raise UsageError(
            f"{path} holds more than a prunekit run ({foreign[0]}), which --overwrite would "
            "remove; give another -o"
        )
    for setting in ("model", "table", "weights"):
        value = getattr(recipe, setting, None)
        if value and Path(value).resolve().is_relative_to(path.resolve()):
            raise UsageError(
                f"`{setting}` {value} lies in {path}, which --overwrite removes; give another -o"
            )

    for spec in filter(None, (recipe.model, recipe.base)):
        if path.resolve() in base_runs(spec):
            raise UsageError(
                f"{spec} was made from {path}, which --overwrite removes; give another -o"
            )


def _set_aside(path: Path) -> None:
    """Keep what is there until the run that replaces it has come to something."""
    if (path / REPLACED).exists():  # of a process that was killed
        if not (path / REPORT).is_file():
            _empty(path)  # what it had begun
            return
        shutil.rmtree(path / REPLACED)
    if path.is_dir() and (children := [*path.iterdir()]):
        (path / REPLACED).mkdir()
        for child in children:
            child.rename(path / REPLACED / child.name)


def _put_back(path: Path) -> None:
    """Undo :func:`_set_aside`, in a folder that is empty."""
    if (path / REPLACED).is_dir():
        for child in [*(path / REPLACED).iterdir()]:
            child.rename(path / child.name)
        (path / REPLACED).rmdir()


def _empty(path: Path) -> None:
    """Remove what a run wrote, and keep the folder itself, which may be a link or a mount."""
    for child in path.iterdir() if path.is_dir() else ():
        if child.name == REPLACED:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _remove_unfinished(path: Path) -> None:
    """Remove files that a killed process was writing."""
    for file in path.rglob(".*"):
        if is_unfinished(file.name) and file.is_file():
            file.unlink()
