"""Pages in Markdown, their code blocks, and how a block is run in a test.

A comment right before a block says what is special about it, and shows nowhere:

    <!-- file: mine.py -->              the block is this file, for the blocks after it
    <!-- not run: needs a GPU -->       with the reason; its commands are parsed all the same
    <!-- exit: 1 -->                    the exit status of its last command, where it is not 0
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import metadata
from itertools import dropwhile
from pathlib import Path
from typing import Any

import typer

from prunekit.cli.main import app, run

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda path: str(path.relative_to(ROOT)),
)
LANGUAGES = {"bash", "python", "toml", "text", "yaml", "html"}
"""Those that a page may have; of these text, yaml and html are only looked at."""
FENCE = re.compile(
    r"(?P<notes>(?:^ *<!-- [^\n]+? -->\n\n?)*)"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!-- (?P<key>file|not run|exit|example): (?P<value>.+?) -->")

QUICK = {
    "prune": ("--target fake --measure-seconds 1 -q", "--epochs 1"),
    "sparsify": ("--target fake --measure-seconds 1 -q", "--epochs 1"),
    "profile": ("--target fake --nets 4 --max-seconds 5 -q", ""),
    "sweep": ("--target fake --points 4 -q", ""),
    "bench": ("--target fake --max-seconds 1", ""),
    "export": ("-q", ""),
}
"""What is appended to a command in a test, and what where it trains: the last flag counts."""
SMALL = {"zoo:resnet20_w32": "zoo:resnet8", "zoo:resnet20": "zoo:resnet8"}
"""The smaller network that stands in for a zoo's larger one."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    body: str
    notes: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return "not run" not in self.notes


def blocks(path: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        lines = [line.removeprefix(indent) for line in match["body"].splitlines()]
        number = text[: match.start("body")].count("\n")
        notes = {note["key"]: note["value"] for note in NOTE.finditer(match["notes"])}
        name = str(path.relative_to(ROOT))
        found.append(Block(name, number, match["language"], "\n".join(lines) + "\n", notes))
    return found


def commands(block: Block) -> list[list[str]]:
    """The simple commands of a bash block, each as its words; none of another."""
    if block.language != "bash":
        return []
    found = []
    for line in block.body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command = list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words[:end]))
            if command:
                found.append(command)
            words = words[end + 1 :]
    return found


def is_prunekit(words: list[str]) -> bool:
    return Path(words[0]).name == "prunekit"


def parse(words: list[str]) -> None:
    """Fails on unknown commands and flags, values of a wrong type, missing arguments."""
    if "--help" in words:
        return
    command: Any = typer.main.get_command(app)
    path = []
    while hasattr(command, "commands"):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    assert not command.make_context(" ".join(path), list(words)).args


def quick(words: list[str]) -> list[str]:
    """The same command of prunekit in seconds: a small network on the fake target."""
    if "--help" in words:
        return words
    name, *rest = (SMALL.get(word, word) for word in words)
    always, training = QUICK.get(name, ("", ""))
    more = shlex.split(always)
    if "--data" in rest or "--config" in rest:
        more += shlex.split(training)
    if name == "prune" and "iee" in rest:  # which prunes while it trains
        more += ["--epochs", "2"]
    if name == "prune" and "--table" not in rest:
        more += ["--profile-nets", "4"]
    if name == "prune" and "--from-scratch" in rest and "iee" not in rest:
        more += ["--dense-epochs", "1"]
    if name == "check" and not any(word.endswith(".json") for word in rest):
        more += ["--target", "fake"]
    return [name, *rest, *more]


def check_other(words: list[str]) -> None:
    """A command that is not prunekit's is one that the pages may use, and what it names exists."""
    if "pip" in Path(words[0]).name:
        extras = re.search(r"\[(.+)\]", words[-1])
        assert extras is None or set(extras[1].split(",")) <= {
            *(metadata("prunekit").get_all("Provides-Extra") or []),
            *_declared_extras(),
        }
    elif Path(words[0]).name in ("python", "python3"):
        if words[1] == "-m":
            assert words[2] in ("venv", "pytest", "mkdocs", "prunekit", "http.server"), words
        else:
            assert (ROOT / words[1]).is_file(), words
    elif words[0] in ("tools/check", ".ci/run"):
        assert os.access(ROOT / words[0], os.X_OK)
    else:
        assert words[0] in ("git", "ruff", "mypy", "lint-imports", "torchrun"), words


def _declared_extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Within a folder, as a script there would be; plugins that it registers are forgotten."""
    from prunekit.support.registry import allocators, criteria, runtimes

    before, path = os.getcwd(), list(sys.path)
    registries = (allocators, criteria, runtimes)
    loaded = [dict(registry._loaded) for registry in registries]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for registry, known in zip(registries, loaded, strict=True):
            registry._loaded = known


def carry_out(block: Block, done: dict[tuple[str, ...], Path]) -> None:
    """Run a block in the present folder; the folders of commands that were ``done`` are copied."""
    if "file" in block.notes:
        Path(block.notes["file"]).write_text(block.body, encoding="utf-8")
    elif block.language == "python":
        code = compile("\n" * block.line + block.body, block.page, "exec")
        exec(code, {"__name__": "__main__"})
    elif block.language == "bash":
        found = commands(block)
        for words in found:
            if is_prunekit(words):
                parse(words[1:])
                if tuple(words[1:]) in done:
                    folder = done[tuple(words[1:])]
                    shutil.copytree(folder, folder.name)
                    continue
                status = run(quick(words[1:]))
                expected = int(block.notes.get("exit", "0")) if words is found[-1] else 0
                assert status == expected, f"{block.where}: {shlex.join(words)} gave {status}"
            else:
                check_other(words)
