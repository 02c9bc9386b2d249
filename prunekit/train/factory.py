"""Data made by a function of the user's, found by ``module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset, Subset, TensorDataset

from prunekit.errors import DataError
from prunekit.progress import track

__all__ = ["call_factory", "classes_of", "labels_of"]


def call_factory(spec: str, offered: dict[str, Any]) -> Any:
    """What the function named by ``spec`` returns, called with what it takes of ``offered``."""
    where, _, name = spec.rpartition(":")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_package(where, spec)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise DataError(f"{where} has no function {name!r}")
    try:
        return factory(**_wanted(factory, offered))
    except Exception as error:
        raise DataError(f"data factory {spec} failed: {_brief(error)}") from error


def _wanted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(factory).parameters
    return {key: value for key, value in offered.items() if key in names}


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    name = f"prunekit_data_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise DataError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    # Registered, so that worker processes that start afresh find the data set's class.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DataError(f"cannot import {path}: {_brief(error)}") from error
    return module


def _from_package(where: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise DataError(
            f"unknown data {spec!r}: {_brief(error)}; give digits, imagefolder:PATH, "
            "cifar10:PATH or another named set, package.module:factory (importable), "
            "or path/file.py:factory"
        ) from error
    except Exception as error:
        raise DataError(f"cannot import {where}: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def classes_of(dataset: Dataset[Any]) -> list[str] | None:
    """The names in the data set's ``classes``, if it has any."""
    if isinstance(dataset, Subset):
        return classes_of(dataset.dataset)
    found = getattr(dataset, "classes", None)
    return None if found is None else [str(name) for name in found]


def labels_of(dataset: Dataset[Any], name: str) -> list[int]:
    """Every label: from ``targets`` or ``labels`` if there are any, else from all samples."""
    known = _known_labels(dataset)
    if known is not None:
        return known
    count = len(dataset)  # type: ignore[arg-type]
    indices = track(range(count), f"reading the labels of {name}", count)
    return [int(dataset[index][1]) for index in indices]


def _known_labels(dataset: Dataset[Any]) -> list[int] | None:
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return [int(label) for label in dataset.tensors[1]]
    for attribute in ("targets", "labels"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            return [int(label) for label in found]
    return None
