"""Flags that several commands share, and how results are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from prunekit.cli.flags import completing
from prunekit.core.target import PRECISIONS
from prunekit.support.progress import verbosity

if TYPE_CHECKING:
    from prunekit.pipeline.recipes.base import TrainingRecipe

TARGET, OUTPUT = "Target", "Output"

PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
"""How a command or a group is made: its help and its errors are plain text."""


def option(
    text: str,
    *names: str,
    section: str | None = None,
    known: Sequence[str] = (),
    metavar: str | None = None,
    complete: Callable[[str], list[str]] | None = None,
    **more: Any,
) -> Any:
    """A flag with its help first; ``known`` are the values that it has, where they are few."""
    return typer.Option(
        *names,
        help=text,
        metavar=metavar or "|".join(known) or None,
        rich_help_panel=section,
        autocompletion=complete or completing(known),
        **more,
    )


def _runtimes(incomplete: str) -> list[str]:
    """What a shell offers for a target."""
    from prunekit.support.registry import runtimes

    return [name for name in runtimes.names() if name.startswith(incomplete)]


Base = Annotated[
    str | None,
    option("The dense model of a run folder, where that is your own code.", metavar="MODEL"),
]
Config = Annotated[Path | None, option("A recipe (TOML) with the same settings; flags win.")]
TargetText = Annotated[
    str,
    option(
        "runtime[:device][:precision]; see prunekit targets.", section=TARGET, complete=_runtimes
    ),
]
Gpu = Annotated[bool, option("The best GPU runtime here, as the target.", "--gpu", section=TARGET)]
GpuPrecision = Annotated[
    str | None, option("With --gpu; default: fp32.", section=TARGET, known=PRECISIONS)
]
Threads = Annotated[int, option("Threads of the target.", section=TARGET, min=1)]
Batch = Annotated[int, option("Batch size of the target.", section=TARGET, min=1)]
Seconds = Annotated[float, option("Stop measuring after this many seconds.", min=0.1)]
RunFolder = Annotated[Path, option("The run folder to make.", "-o", "--output", section=OUTPUT)]
Resume = Annotated[
    bool, option("Go on where an interrupted run stopped.", "--resume", section=OUTPUT)
]
Overwrite = Annotated[bool, option("Replace what is at the output.", "--overwrite", section=OUTPUT)]
Json = Annotated[bool, option("One JSON object on stdout.", "--json", section=OUTPUT)]
Verbose = Annotated[bool, option("Say more.", "--verbose", "-v", section=OUTPUT)]
Quiet = Annotated[bool, option("No progress, no remarks.", "--quiet", "-q", section=OUTPUT)]

_ORDER = (
    *("Arguments", "Options", "Target", "Measurements", "What goes", "What becomes zero"),
    *("Task", "Dense network", "Training", "Output"),
)


class Sectioned(TyperCommand):
    """A command whose help has headings: those of its flags."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the flags under their headings."""
        parts: dict[str, list[tuple[str, str]]] = {title: [] for title in _ORDER}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                parts["Arguments" if is_argument else title].append(record)
        for title, records in parts.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def target_of(gpu: bool, target: str | None, precision: str | None) -> str | None:
    """What ``--gpu``, ``--precision`` and ``--target`` say together; None where none is given."""
    from prunekit.runtimes.nvidia.gpu import best_gpu
    from prunekit.support.errors import UsageError

    if gpu and target is not None:
        raise UsageError("--gpu and --target exclude each other; keep one")
    if precision is not None and not gpu:
        raise UsageError(
            "--precision goes with --gpu; a target has its own, such as torch:cuda:fp16"
        )
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown --precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return str(best_gpu(precision or "fp32")) if gpu else target


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """How much goes to stderr."""
    verbosity.level = -1 if quiet else int(verbose)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """Text on stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column to the left, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", show_lines=False)
    for number, name in enumerate(head):
        shown.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    width = None if sys.stdout.isatty() else 140
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False)
    with console.capture() as text:  # rich itself would exit with 1 on a closed pipe
        console.print(shown)
    sys.stdout.write(text.get())


def refuse_existing(path: Path, overwrite: bool, resume: bool = False) -> None:
    """An output file that exists is an error unless it may be replaced."""
    from prunekit.support.errors import UsageError

    if path.is_dir():
        raise UsageError(f"output {path} is a folder; give a file")
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; keep one")
    if path.exists() and not (overwrite or resume):
        raise UsageError(f"output {path} exists; use --overwrite or another -o")


def refuse_same(**files: Path | None) -> None:
    """Files that a command reads or writes must be different ones; they go by their flags."""
    from prunekit.support.errors import UsageError

    known: dict[Path, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        other = known.setdefault(path.resolve(), name)
        if other != name:
            raise UsageError(f"--{other} and --{name} are both {path}; give two files")


@contextmanager
def run_in(output: Path, recipe: TrainingRecipe, overwrite: bool, resume: bool) -> Iterator[None]:
    """A pipeline that makes the run folder ``output``; of several processes one speaks."""
    from prunekit.pipeline.output_folder import check_folder
    from prunekit.support.processes import on_rank_zero, rank

    if rank() > 0:
        set_verbosity(verbose=False, quiet=True)
    on_rank_zero(lambda: check_folder(output, recipe, overwrite=overwrite, resume=resume))
    with resumable(output):
        yield


def print_run(output: Path, artifacts: Mapping[str, str]) -> None:
    """Where the files of a finished run lie."""
    from prunekit.core.run_folder import REPORT

    for name, path in {**artifacts, "report": str(output / REPORT)}.items():
        print_text(f"{name:>14}: {path}")


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """What stops a run inside the block says what is kept in ``output`` and how to go on."""
    from prunekit.core.run_folder import RECIPE
    from prunekit.support.errors import FileError, InterruptedRunError

    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; finished rounds and epochs are in {output}: same command with --resume"
            if (output / RECIPE).is_file()
            else "interrupted before anything was finished; nothing is kept"
        ) from None
    except FileError as error:
        if not (output / RECIPE).is_file():
            raise
        raise FileError(
            f"{error}; finished epochs are in {output}: same command with --resume"
        ) from error
