"""Flags that several commands share, and how results are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from prunekit.support.progress import verbosity

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=(
            "torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:factory, package.module:factory "
            "or a run folder"
        ),
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The dense model of a run folder, where that is your own code.",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", help="Input shape, batch first; default: that of a run folder, or 1x3x224x224."
    ),
]
TargetText = Annotated[
    str, typer.Option("--target", help="runtime[:device][:precision]; see prunekit targets.")
]
Gpu = Annotated[bool, typer.Option("--gpu", help="The best GPU runtime here, as the target.")]
GpuPrecision = Annotated[
    str | None,
    typer.Option("--precision", help="With --gpu: fp32 (default), tf32, fp16, bf16 or int8."),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the target.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Batch size of the target.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output.")]
Reparameterize = Annotated[
    bool,
    typer.Option(
        "--reparameterize/--no-reparameterize",
        help="Fold blocks that train with branches, as they are deployed.",
    ),
]
Heads = Annotated[
    str,
    typer.Option(
        "--heads", help="What goes of attentions: whole heads, or width of all heads alike."
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="LAYER",
        help=(
            "Layers whose output channels all stay: a name, a module or a pattern such as "
            "layer4.*; may be repeated."
        ),
    ),
]
MinWidth = Annotated[
    str | None,
    typer.Option(
        "--min-width",
        metavar="SHARE",
        help="Share of each group's channels that stays at least, such as 25%.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Seconds = Annotated[
    float, typer.Option("--max-seconds", min=0.1, help="Stop measuring after this many seconds.")
]


def option(text: str, *names: str, **more: Any) -> Any:
    """A flag with its help first."""
    return typer.Option(*names, help=text, **more)


def sections(**headings: str) -> type[TyperCommand]:
    """A command whose help has these headings, each from the named parameter on."""

    class Sectioned(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            parts: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
            heading = "Options"
            for parameter in self.get_params(ctx):
                heading = headings.get(parameter.name or "", heading)
                is_argument = parameter.param_type_name == "argument"
                if (record := parameter.get_help_record(ctx)) is not None:
                    parts.setdefault("Arguments" if is_argument else heading, []).append(record)
            for title, records in parts.items():
                if records:
                    with formatter.section(title):
                        formatter.write_dl(records)

    return Sectioned


def target_of(gpu: bool, target: str | None, precision: str | None) -> str | None:
    """What ``--gpu``, ``--precision`` and ``--target`` say together; None where none is given."""
    from prunekit.core.target import PRECISIONS
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
