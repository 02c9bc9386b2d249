"""The command line as a whole: help, version, exits, closed streams, interrupts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import COMMANDS, SHAPE, Says


@pytest.mark.parametrize("command", ["", *COMMANDS, "table show"])
def test_help(prunekit: Says, command: str) -> None:
    status, out, err = prunekit(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: prunekit {command}".rstrip())
    assert "--help" in out


@pytest.mark.parametrize("command", ["prune", "sparsify"])
def test_help_of_many_flags_has_sections(prunekit: Says, command: str) -> None:
    from prunekit.pipeline.recipes.prune import Recipe
    from prunekit.pipeline.recipes.sparsify import SparseRecipe

    _, out, _ = prunekit(command, "--help")
    sections = re.findall(r"^(\w.*):$", out, re.M)
    assert sections[:2] == ["Arguments", "Options"]
    assert sections[-3:] == ["Dense network", "Training", "Output"]
    settings = {"prune": Recipe, "sparsify": SparseRecipe}[command].model_fields
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.M)
    assert len(flags) == len(set(flags))
    missing = {f"--{name.replace('_', '-')}" for name in settings} - {*flags, "--model"}
    assert missing <= {"--options"}  # which is --option, one by one


def test_help_lists_every_command_and_exit_status(prunekit: Says) -> None:
    _, out, _ = prunekit("--help")
    for word in (*COMMANDS, "0 done", "1 it ran", "2 usage", "3 inconclusive", "130 interrupted"):
        assert word in out


def test_version(prunekit: Says) -> None:
    from importlib.metadata import version

    assert prunekit("--version") == (0, f"prunekit {version('prunekit')}\n", "")


def test_no_command_shows_help(prunekit: Says) -> None:
    status, out, err = prunekit()
    assert status == 2
    assert "Usage: prunekit" in out + err


def test_a_closed_pipe_is_quiet_and_no_success(made: Path) -> None:
    code = "from prunekit.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "table", "show", str(made / "table.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_streams_that_are_closed_do_not_change_the_answer(home: Path) -> None:
    program = f"{sys.executable} -m prunekit"
    slower = "check run/dense.onnx --baseline run/model.onnx --target fake"
    for command, status in (
        (f"{program} {slower} 2>&-", 1),
        (f"{program} {slower} --json | true; exit ${{PIPESTATUS[0]}}", 141),
        (f"{program} report run --json > /dev/full", 2),
    ):
        done = subprocess.run(
            ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (command, done.stderr)
        assert "Traceback" not in done.stderr


def test_ctrl_c_says_so(prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunekit.tracing.trace", interrupt)
    status, out, err = prunekit("inspect", "net.py:tiny", *SHAPE, "--json")
    assert status == 130
    assert err.splitlines()[-1] == "prunekit: interrupted"
    assert json.loads(out) == {"error": "interrupted", "exit_code": 130}


def test_the_end_waits_for_threads_and_for_what_is_to_be_done_at_the_end() -> None:
    code = """
import atexit, sys, threading, time
from prunekit.cli import main

def late():
    time.sleep(0.3)
    print("thread")

atexit.register(print, "at exit")
threading.Thread(target=late).start()
sys.argv = ["prunekit", "inspect", "nothing:such", "--input", "1x3x8x8"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "thread\nat exit\n"
    assert done.stderr.startswith("prunekit: ")
