"""The names that `import prunekit` gives, with every signature: as recorded in public_names.json.

`python tests/golden/record.py names` records them anew.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import re
from types import ModuleType
from typing import Any

import recorded

FILE = "public_names.json"
_PREFIX = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")


def plain(annotation: Any) -> str:
    """An annotation by simple names, without the modules they are in."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else _named(annotation)
    return _PREFIX.sub("", text.replace("~", "").strip("'\""))


def _named(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(value: Any) -> str:
    """A default value; one that has no text of its own goes by its type."""
    if isinstance(value, type):
        return value.__name__
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text


def signature(function: Any) -> str:
    """Parameters and what comes back."""
    found = inspect.signature(function)
    parts = []
    kinds = [parameter.kind for parameter in found.parameters.values()]
    for place, parameter in enumerate(found.parameters.values()):
        kind = parameter.kind
        if kind is parameter.KEYWORD_ONLY and not {
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        } & {*kinds[:place]}:
            parts.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        text = stars + parameter.name
        if of_type := plain(parameter.annotation):
            text += f": {of_type}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
        if (
            kind is parameter.POSITIONAL_ONLY
            and parameter.POSITIONAL_ONLY not in kinds[place + 1 :]
        ):
            parts.append("/")
    back = plain(found.return_annotation)
    return f"({', '.join(parts)})" + (f" -> {back}" if back else "")


def _own(cls: type, name: str) -> tuple[Any, bool]:
    """The attribute as a class defines it, and whether that class is the package's."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name], base.__module__.partition(".")[0] == "prunekit"
    return None, False


def members(path: str, cls: type) -> dict[str, str]:
    """Fields, methods and properties of a class that its users may name."""
    found: dict[str, str] = {}
    known = {found for found in vars(builtins).values() if isinstance(found, type)} - {object}
    bases = [base.__name__ for base in cls.__mro__[1:] if base in known]
    found[path] = "class" + (f" of {', '.join(bases)}" if bases else "")
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            default = ""
            if field.default is not dataclasses.MISSING:
                default = f" = {_default(field.default)}"
            elif field.default_factory is not dataclasses.MISSING:
                default = f" = {field.default_factory.__name__}()"
            found[f"{path}.{field.name}"] = f"field: {plain(field.type)}{default}"
    elif hasattr(cls, "model_fields"):
        for name, field in cls.model_fields.items():
            default = "" if field.is_required() else f" = {field.get_default()!r}"
            found[f"{path}.{name}"] = f"field: {plain(field.annotation)}{default}"
    init, own = _own(cls, "__init__")
    if own and not dataclasses.is_dataclass(cls):
        found[f"{path}.__init__"] = signature(init)
    for name in dir(cls):
        value, own = _own(cls, name)
        if name.startswith("_") or not own or f"{path}.{name}" in found:
            continue
        if isinstance(value, classmethod | staticmethod):
            kind = type(value).__name__
            found[f"{path}.{name}"] = f"{kind} {signature(value.__func__)}"
        elif isinstance(value, property):
            back = plain(inspect.signature(value.fget).return_annotation)
            found[f"{path}.{name}"] = f"property: {back}"
        elif hasattr(value, "func") and not callable(value):  # a cached property
            back = plain(inspect.signature(value.func).return_annotation)
            found[f"{path}.{name}"] = f"property: {back}"
        elif inspect.isfunction(value):
            found[f"{path}.{name}"] = signature(value)
        else:
            found[f"{path}.{name}"] = f"value: {_default(value)}"
    return found


def public_names() -> dict[str, str]:
    """Every public name and what it is."""
    import prunekit

    found: dict[str, str] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            found[path] = "module"
            for name in value.__all__:
                add(f"{path}.{name}", getattr(value, name))
        elif inspect.isclass(value):
            found.update(members(path, value))
        elif inspect.isfunction(value):
            found[path] = signature(value)
        elif isinstance(value, dict):
            found[path] = f"value: {sorted(value)}"
        else:
            found[path] = f"value: {_default(value)}"

    for name in prunekit.__all__:
        add(name, getattr(prunekit, name))
    return dict(sorted(found.items()))


def record() -> None:
    recorded.write(FILE, public_names(), depth=1)


def test_names_and_signatures_are_as_recorded() -> None:
    recorded.check(FILE, public_names())
