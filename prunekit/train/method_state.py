"""What methods keep of themselves for a training that goes on later.

A state is a dataclass, and every field of it is saved: numbers and words under their own names, the
others as a :class:`Form` says (:func:`forms_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import (
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    get_origin,
    get_type_hints,
)

from torch import Tensor

from prunekit.support.errors import UsageError
from prunekit.train.rule import JSON, Facts, Tensors

T = TypeVar("T")

Entry: TypeAlias = dict[str, Any]
"""What an optimizer remembers of one parameter: tensors and numbers by torch's own names."""
OptimizerState: TypeAlias = dict[str, Entry]
"""An optimizer's state by the name of the parameter."""


UNSAVED = {"saved": False}
"""Metadata of a field that follows from others, or is empty whenever a state is saved."""


class Saved(NamedTuple):
    """A state as files hold it: tensors, and facts that JSON can write."""

    tensors: Tensors
    facts: Facts

    @classmethod
    def empty(cls) -> Saved:
        """Nothing yet."""
        return cls({}, {})

    def contiguous(self) -> Saved:
        """In the order of their axes, as files want tensors whatever the memory format."""
        return Saved({name: t.contiguous() for name, t in self.tensors.items()}, self.facts)


class Form(Protocol):
    """How one field of a state is saved: its names in a file, and the way there and back."""

    def write(self, value: Any, saved: Saved) -> None:
        """Add ``value`` to what is saved."""

    def read(self, saved: Saved) -> Any:
        """The value that was written, of tensors a copy."""


Forms: TypeAlias = Mapping[str, Form]
"""By the field's name."""


@dataclass(frozen=True)
class Plain:
    """A number or a word."""

    name: str
    kind: type

    def write(self, value: Any, saved: Saved) -> None:
        """As it is."""
        saved.facts[self.name] = value

    def read(self, saved: Saved) -> Any:
        """Of the same type again."""
        return self.kind(saved.facts[self.name])


@dataclass(frozen=True)
class Numbered:
    """A list of tensors, as ``name.0``, ``name.1``, ..."""

    name: str
    copied: bool = False
    """Whether a copy is saved; safetensors refuses a tensor that has two names."""

    def write(self, value: list[Tensor], saved: Saved) -> None:
        """One tensor each."""
        for i, part in enumerate(value):
            saved.tensors[f"{self.name}.{i}"] = part.clone() if self.copied else part

    def read(self, saved: Saved) -> list[Tensor]:
        """As many as there are."""
        count = len(named(saved.tensors, self.name))
        return [saved.tensors[f"{self.name}.{i}"].clone() for i in range(count)]


@dataclass(frozen=True)
class Named:
    """Tensors by a name, as ``name.NAME``."""

    name: str

    def write(self, value: Mapping[str, Tensor], saved: Saved) -> None:
        """One tensor each."""
        saved.tensors.update({f"{self.name}.{key}": part for key, part in value.items()})

    def read(self, saved: Saved) -> dict[str, Tensor]:
        """By the names they had."""
        return {key: part.clone() for key, part in named(saved.tensors, self.name).items()}


@dataclass(frozen=True)
class ByParameter:
    """An optimizer's state, as ``name.KEY.PARAMETER``; what is no tensor stands in ``numbers``."""

    name: str

    def write(self, value: OptimizerState, saved: Saved) -> None:
        """Each value alone; None is left out."""
        numbers = saved.facts.setdefault("numbers", {})
        for parameter, entry in value.items():
            for key, kept in entry.items():
                _put(kept, f"{self.name}.{key}.{parameter}", saved.tensors, numbers)

    def read(self, saved: Saved) -> OptimizerState:
        """By parameter again."""
        state: OptimizerState = {}
        values = {**named(saved.tensors, self.name), **named(saved.facts["numbers"], self.name)}
        for where, value in values.items():
            key, _, parameter = where.partition(".")
            state.setdefault(parameter, {})[key] = _taken(value)
        return state


@dataclass(frozen=True)
class BySlot:
    """A list of an optimizer's entries, as ``name.NUMBER.KEY``; what is no tensor in ``states``."""

    name: str

    def write(self, value: list[Entry], saved: Saved) -> None:
        """Each value alone; None is left out."""
        numbers = saved.facts.setdefault("states", {})
        numbers[self.name] = len(value)
        for i, entry in enumerate(value):
            for key, kept in entry.items():
                _put(kept, f"{self.name}.{i}.{key}", saved.tensors, numbers)

    def read(self, saved: Saved) -> list[Entry]:
        """As many entries as there were, empty ones too."""
        numbers = saved.facts["states"]
        entries: list[Entry] = [{} for _ in range(numbers[self.name])]
        values = {**named(saved.tensors, self.name), **named(numbers, self.name)}
        for where, value in values.items():
            index, _, key = where.partition(".")
            entries[int(index)][key] = _taken(value)
        return entries


def forms_of(state: type, special: Forms) -> Forms:
    """The form of every field of the dataclass ``state``: as in ``special``, or plain."""
    hints = get_type_hints(state)
    forms: dict[str, Form] = {}
    for spec in fields(state):
        if not spec.metadata.get("saved", True):
            continue
        if spec.name in special:
            forms[spec.name] = special[spec.name]
            continue
        kind = str if get_origin(hints[spec.name]) is Literal else hints[spec.name]
        if kind not in (int, float, str):
            raise TypeError(f"say in which form {state.__name__}.{spec.name} is saved")
        forms[spec.name] = Plain(spec.name, kind)
    return forms


def write(state: object, saved: Saved, forms: Forms) -> None:
    """Add to ``saved`` what ``forms`` name of ``state``."""
    for name, form in forms.items():
        form.write(getattr(state, name), saved)


def read(state: object, saved: Saved, forms: Forms) -> None:
    """Set what ``forms`` name of ``state`` to what :func:`write` saved."""
    for name, form in forms.items():
        setattr(state, name, form.read(saved))


def named(values: Mapping[str, T], kind: str) -> dict[str, T]:
    """What is named ``kind.NAME``, by NAME."""
    start = f"{kind}."
    return {n.removeprefix(start): v for n, v in values.items() if n.startswith(start)}


def _put(value: Any, name: str, tensors: Tensors, numbers: Facts) -> None:
    if isinstance(value, Tensor):
        tensors[name] = value
    elif value is not None:
        numbers[name] = value


def _taken(value: Any) -> Any:
    """A copy of what an optimizer remembers; it counts steps on the CPU."""
    if not isinstance(value, Tensor):
        return value
    return (value.cpu() if value.ndim == 0 else value).clone()


def check_settings(what: str, then: Mapping[str, JSON], now: Mapping[str, JSON]) -> None:
    """Raise UsageError for the first setting that is another now."""
    for name, value in then.items():
        if (changed := now.get(name)) != value:
            raise UsageError(
                f"the {what} to go on with was made with `{name}` {value!r}, now it is "
                f"{changed!r}; use the same to resume"
            )
