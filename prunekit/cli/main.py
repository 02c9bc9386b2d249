"""The entry point: commands, exit statuses, one clear line for every error."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from prunekit.cli.commands import COMPLETION, Commands
from prunekit.support.errors import PrunekitError

# typer carries its own copy of click in some versions and uses the package in others
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="prunekit",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Prune a network to a latency that is measured on your target.\n\n"
        "Exit status: 0 done; 1 it ran and the answer is no (target missed, regression found, "
        "infeasible); 2 usage or environment error; 3 inconclusive: too noisy to tell; "
        "130 interrupted."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from prunekit.core.target import package_version

        sys.stdout.write(f"prunekit {package_version('prunekit')}\n")
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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
    if "_PRUNEKIT_COMPLETE" in os.environ or COMPLETION & {*sys.argv[1:2]}:
        app(prog_name="prunekit")  # typer answers the shell, and exits
    # exports make millions of small objects: a quarter of their time went into looking for cycles
    gc.set_threshold(100_000, 20, 20)
    _leave(run(sys.argv[1:]))


def _leave(status: int) -> NoReturn:
    """End the process; Python would take all that was imported apart, for most of a second."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # Python's own end says what it makes of it
        sys.exit(status)
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; its exit status. Errors are one line on stderr."""

    def fail(message: str, status: int) -> int:
        line = " ".join(message.split())
        with suppress(OSError):
            if "--json" in arguments:
                sys.stdout.write(json.dumps({"error": line, "exit_code": status}) + "\n")
                sys.stdout.flush()
        with suppress(OSError):
            sys.stderr.write(f"prunekit: {line}\n")
        return status

    result: object = None
    try:
        result = app(args=arguments, prog_name="prunekit", standalone_mode=False)
        sys.stdout.flush()
    except PrunekitError as error:
        return fail(str(error), error.exit_code)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(error.format_message() + "\n")
            return 2
        command = error.ctx.command_path if getattr(error, "ctx", None) else "prunekit"
        return fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except (BrokenPipeError, SystemExit) as error:
        # typer and rich turn a closed pipe into an exit
        if BrokenPipeError in (type(error), type(error.__context__)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return result if isinstance(result, int) and result else 141  # as shells have it
        code = error.code if isinstance(error, SystemExit) else None
        status = code if isinstance(code, int) and code else 2
        return fail(f"some code that ran has called sys.exit({code!r})", status)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", 2)
    except Exception as error:
        # never 1, which would say that the command ran and the answer is no
        return fail(_unexpected(error, arguments), 2)
    if result == 130:  # typer makes a status of Ctrl-C
        return fail("interrupted", 130)
    return result if isinstance(result, int) else 0


def _unexpected(error: Exception, arguments: list[str]) -> str:
    if {"-v", "--verbose"} & {*arguments}:
        traceback.print_exception(error)
    *_, last = traceback.extract_tb(error.__traceback__)
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    return f"unexpected {type(error).__name__} at {where}: {error}; the same with -v shows more"
