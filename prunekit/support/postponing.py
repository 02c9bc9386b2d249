"""Imports put off until they are used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _Postponed(ModuleType):
    """Stands for a module that is imported when one of its functions is called."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        for function in functions:
            setattr(self, function, _on_use(name, function))

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import system asks for
            raise AttributeError(attribute)
        return getattr(_real(self.__name__), attribute)


def _on_use(module: str, function: str) -> Callable[..., Any]:
    def used(*arguments: Any, **named: Any) -> Any:
        return getattr(_real(module), function)(*arguments, **named)

    return used


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _Postponed):
        del sys.modules[name]
    return import_module(name)


@contextmanager
def postponing(name: str, *functions: str) -> Iterator[None]:
    """Modules imported in the block get ``functions`` of module ``name`` without importing it.

    It is imported when one of them is called, or when something else of it is asked for.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = _Postponed(name, functions)
    try:
        yield
    finally:
        if isinstance(sys.modules.get(name), _Postponed):
            del sys.modules[name]
