"""Functions of the user's, named ``path/file.py:function`` or ``package.module:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.support.errors import PrunekitError


def call_factory(
    spec: str, offered: Mapping[str, Any], error: type[PrunekitError], hint: str = ""
) -> tuple[Any, dict[str, Any]]:
    """What the function named by ``spec`` returns, and those of ``offered`` that it took.

    Whatever the user's code raises, SystemExit included, becomes one line of ``error``; ``hint``
    ends the line about a package that does not exist.
    """
    factory = load_factory(spec, error, hint)
    taken = _accepted(factory, offered)
    try:
        return factory(**taken), taken
    except PrunekitError:
        raise
    except (Exception, SystemExit) as cause:
        raise error(f"{spec} failed: {_brief(cause)}") from cause


def load_factory(spec: str, error: type[PrunekitError], hint: str = "") -> Callable[..., Any]:
    """The callable that ``spec`` means; ``error`` when there is none."""
    source, _, name = spec.rpartition(":")
    module = (
        _from_file(Path(source), spec, error)
        if source.endswith(".py")
        else _from_package(source, spec, error, hint)
    )
    factory = getattr(module, name, None)
    if not callable(factory):
        raise error(f"{source} has no callable {name!r}")
    return factory  # type: ignore[no-any-return]


def _from_file(path: Path, spec: str, error: type[PrunekitError]) -> ModuleType:
    if not path.is_file():
        raise error(f"no file {path} (in {spec!r})")
    # One name for each use: data read from the file a model comes from must not replace its module.
    name = f"_prunekit_{error.__name__.removesuffix('Error').lower()}_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise error(f"cannot import {path}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # so that what is defined there can be pickled
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as cause:
        sys.modules.pop(name, None)
        raise error(f"{path} fails on import: {_brief(cause)}") from cause
    return module


def _from_package(source: str, spec: str, error: type[PrunekitError], hint: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as cause:
        more = f"; {hint}" if hint and isinstance(cause, ModuleNotFoundError) else ""
        raise error(f"cannot import {source!r} (in {spec!r}): {_brief(cause)}{more}") from cause


def _accepted(factory: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in offered.items() if name in parameters}


def _brief(cause: BaseException) -> str:
    text = str(cause).splitlines()
    return f"{type(cause).__name__}: {text[0]}" if text else type(cause).__name__
