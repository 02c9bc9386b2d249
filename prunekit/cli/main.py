"""The entry point: commands, exit statuses, one clear line for every error."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from prunekit.cli import bench, check, export, inspect, profile_, prune, report, table, targets
from prunekit.errors import PrunekitError

# typer carries its own copy of click in some versions and uses the package in others
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="prunekit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Prune a network to a latency that is measured on your target.\n\n"
        "Exit status: 0 done; 1 it ran and the answer is no (target missed, regression found, "
        "infeasible); 2 usage or environment error; 3 inconclusive; 130 interrupted."
    ),
)

for command in (targets, inspect, profile_, prune, export, bench, check, report):
    command.register(app)
table.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"prunekit {version('prunekit')}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit status. Errors are one line on stderr."""
    try:
        result = app(args=arguments, prog_name="prunekit", standalone_mode=False)
    except PrunekitError as error:
        return _fail(str(error), error.exit_code)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(error.format_message() + "\n")
            return 2
        return _fail(f"{error.format_message().rstrip('.')}; see prunekit --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(
            "interrupted; finished rounds and epochs are kept: same command, --resume", 130
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", 2)
    return result if isinstance(result, int) else 0


def _fail(message: str, status: int) -> int:
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"error": message, "exit_code": status}) + "\n")
    sys.stderr.write(f"prunekit: {' '.join(message.split())}\n")
    return status
