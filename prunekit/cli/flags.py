"""Flags made from the fields of a recipe, so that a setting and its default are told once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from prunekit.pipeline.recipes.base import TrainingRecipe
    from prunekit.pipeline.recipes.flag import Flag

R = TypeVar("R", bound="TrainingRecipe")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Given(Generic[R]):
    """The settings that were given on the command line; those left out are the recipe's own."""

    kind: type[R]
    settings: Mapping[str, object]

    def text(self, name: str) -> str | None:
        """A setting as it was written; None where it was left out."""
        value = self.settings.get(name)
        return None if value is None else str(value)

    def recipe(self, config: Path | None = None, **more: object) -> R:
        """The whole recipe: these settings and ``more`` of them over the ``config`` file's."""
        from prunekit.pipeline.recipes.base import read_recipe

        return read_recipe(self.kind, {**self.settings, **more}, config)


def settings(recipe: str, *names: str) -> Callable[[Function], Function]:
    """A command's ``given`` are settings of the ``recipe`` (module:class), all where none is named.

    The recipe is imported when the command is used.
    """

    def mark(function: Function) -> Function:
        function.__dict__["settings"] = (recipe, names)
        return function

    return mark


def with_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command as typer reads it: one parameter for each of the settings in place of ``given``."""
    if "settings" not in function.__dict__:
        return function
    from prunekit.pipeline.recipes.base import TrainingRecipe

    where, names = function.__dict__["settings"]
    module, _, name = where.partition(":")
    kind: type[TrainingRecipe] = getattr(import_module(module), name)
    hints = get_type_hints(function, localns={name: kind}, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    # what is the recipe's own comes before what all recipes have, within a section
    order = sorted(kind.model_fields, key=TrainingRecipe.model_fields.__contains__)
    fields = {name: kind.model_fields[name] for name in order if not names or name in names}
    alone = all(parameter.name != "config" for parameter in own)

    @functools.wraps(function)
    def command(_context: typer.Context, **values: Any) -> Any:
        given = {}
        for name, field in fields.items():
            value, source = values.pop(name), _context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                given[name] = _read(name, field, value)
        return function(Given(kind, given), **values)

    command.__dict__["__signature__"] = inspect.Signature(
        [
            inspect.Parameter("_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(_parameter(name, field, alone) for name, field in fields.items()),
            *own,
        ]
    )
    command.__annotations__ = {}
    return command


def _flag(field: FieldInfo) -> Flag:
    """What a recipe says of a field's flag."""
    from prunekit.pipeline.recipes.flag import Flag

    return next(part for part in field.metadata if isinstance(part, Flag))


def _read(name: str, field: FieldInfo, value: Any) -> object:
    """The value of a flag as the recipe takes it."""
    from prunekit.pipeline.recipes.base import pairs

    if not isinstance(value, list):
        return value
    example = _flag(field).example
    return pairs(value, f"--{name}", example) if example else tuple(value)


def _parameter(name: str, field: FieldInfo, alone: bool) -> inspect.Parameter:
    """The flag of a field; ``alone``: no file is read as well, and much is checked here already."""
    flag = _flag(field)
    kind, choices = _kind(field)
    default = None if flag.as_text or kind == list[str] else field.get_default()
    plugins = flag.plugin_names()
    help_text = flag.help
    if plugins and flag.metavar == "NAME":
        help_text = f"{help_text.rstrip('.')}; known: {', '.join(plugins)}."
    if name == "model":
        info = typer.Argument(metavar=flag.metavar, help=help_text)
        default = inspect.Parameter.empty if alone else None
    else:
        spelled = "--" + name.replace("_", "-")
        checked = alone and kind in (int, float)
        least = [part.ge for part in field.metadata if checked and hasattr(part, "ge")]
        info = typer.Option(
            f"{spelled}/--no-{spelled[2:]}" if default is True else spelled,
            help=help_text,
            metavar=flag.metavar or "|".join(choices) or None,
            min=least[0] if least else None,
            rich_help_panel=flag.section,
            autocompletion=completing(choices or plugins),
        )
    type_: Any = kind | None if default is None else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, info]
    )


def _kind(field: FieldInfo) -> tuple[Any, list[str]]:
    """The type that the command line reads a field as, and its values where they are few."""
    parts = [part for part in get_args(field.annotation) if part is not NoneType]
    kind = parts[0] if NoneType in get_args(field.annotation) else field.annotation
    if get_origin(kind) is Literal:
        return str, [*map(str, get_args(kind))]
    if get_origin(kind) in (tuple, dict):
        return list[str], []
    return (str if _flag(field).as_text else kind), []


def completing(values: Sequence[str]) -> Callable[[str], list[str]] | None:
    """What a shell offers for a flag whose ``values`` are known."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete if values else None
