"""Every code block of the README works: Python runs, commands parse, recipes load."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from prunekit.cli.main import app, run

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]+?) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    note: str
    line: int

    @property
    def file(self) -> str:
        """The file's name where the README shows a file."""
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else ""


def _blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        body = "\n".join(line.removeprefix(indent) for line in match["body"].splitlines())
        line = text[: match.start("body")].count("\n") + 1
        found.append(Block(match["language"], body + "\n", match["note"] or "", line))
    return [block for block in found if block.note != "not run"]


def _commands(block: Block) -> list[list[str]]:
    """The simple commands of a bash block, each as its words."""
    lines = block.body.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    return commands


BLOCKS = _blocks()
COMMANDS = [
    pytest.param(words, id=f"line {block.line}: {' '.join(words)[:50]}")
    for block in BLOCKS
    if block.language == "bash"
    for words in _commands(block)
]
PYTHON = [
    pytest.param(block, id=f"line {block.line}") for block in BLOCKS if block.language == "python"
]
FILES = {block.file: block.body for block in BLOCKS if block.file}
PRUNEKIT = [
    words[1:]
    for parameter in COMMANDS
    if Path((words := parameter.values[0])[0]).name == "prunekit"
]


def test_the_blocks_are_found() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("```") == 2 * len(BLOCKS) + 2 * text.count("<!-- not run -->")
    assert {block.language for block in BLOCKS} <= {"bash", "python", "toml", "mermaid"}
    assert len(PYTHON) >= 2
    assert len(PRUNEKIT) >= 5


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / (block.file or "example.py")
    script.write_text(block.body)
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words: list[str]) -> None:
    """Whatever is not prunekit's own is at least a command that the README may use."""
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    name = Path(words[0]).name
    if name == "prunekit":
        _parse(words[1:])
    elif name == "pip":
        extras = re.search(r"\[(.+)\]", words[-1])
        assert extras
        assert set(extras[1].split(",")) <= set(_extras())
    elif words[0] == "tools/check":
        assert os.access(ROOT / words[0], os.X_OK)
    else:
        assert words[:3] == ["python3", "-m", "venv"]


def _extras() -> list[str]:
    from importlib.metadata import metadata

    return metadata("prunekit").get_all("Provides-Extra") or []


def _parse(words: list[str]) -> None:
    """Fails on unknown commands, unknown flags, values of a wrong type, missing arguments."""
    command, path = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(" ".join(path), list(words))
    assert not context.args


def test_the_commands_that_are_listed_exist(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| `prunekit ([a-z ]+?)(?: [A-Z-\[].*?)?` \|", _text(), re.MULTILINE)
    known = typer.main.get_command(app).commands
    assert {row.split()[0] for row in rows} == set(known)
    for row in rows:
        assert run([*row.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def _text() -> str:
    return (ROOT / "README.md").read_text()


def test_recipes_load(tmp_path: Path) -> None:
    from prunekit.pipeline.recipes.prune import make_recipe

    recipes = [block for block in BLOCKS if block.language == "toml"]
    assert recipes
    for block in recipes:
        path = tmp_path / "run.toml"
        path.write_text(block.body)
        make_recipe({}, path)


def test_own_model_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [words for words in PRUNEKIT if "mine.py:net" in words]
    (tmp_path / "mine.py").write_text(FILES["mine.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ["--target", "fake", "--epochs", "2", "--profile-nets", "4", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", *words, *small],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "model.onnx").is_file()
