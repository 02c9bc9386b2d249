"""Every code block of the README and the documentation works, or says why it is not run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from pages import (
    LANGUAGES,
    PAGES,
    ROOT,
    blocks,
    carry_out,
    commands,
    inside,
    is_prunekit,
    parse,
    quick,
)

from prunekit.cli.main import app, run

BY_NAME = {str(path.relative_to(ROOT)): path for path in PAGES}
WITH_CODE = [name for name, path in BY_NAME.items() if any(b.is_run for b in blocks(path))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<to>[^)\s]+)\)")
README = ROOT / "README.md"


MAIN_JOB = tuple(commands(blocks(README)[0])[-1][1:])
"""The README's first command of prunekit, whose run folder all pages have at hand."""


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    folder = tmp_path_factory.mktemp("main_job")
    with inside(folder):
        assert run(quick(list(MAIN_JOB))) == 0
    return {MAIN_JOB: folder / "run"}


@pytest.mark.parametrize("page", WITH_CODE)
def test_its_blocks_run_in_order(
    page: str,
    main_job: dict[tuple[str, ...], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to_run = [block for block in blocks(BY_NAME[page]) if block.is_run]
    if not any(tuple(words[1:]) in main_job for b in to_run for words in commands(b)):
        shutil.copytree(main_job[MAIN_JOB], tmp_path / "run")
    with inside(tmp_path):
        for block in to_run:
            carry_out(block, main_job)
    capsys.readouterr()


@pytest.mark.parametrize("page", BY_NAME)
def test_its_blocks_are_of_a_known_kind(page: str) -> None:
    text = BY_NAME[page].read_text(encoding="utf-8")
    found = blocks(BY_NAME[page])
    assert text.count("```") == 2 * len(found)
    for block in found:
        assert block.language in LANGUAGES, block.where
        reason = block.notes.get("not run")
        assert reason is None or len(reason.split()) >= 2, block.where
        if block.language == "bash" and not block.is_run:  # its commands are right all the same
            for words in commands(block):
                if is_prunekit(words):
                    parse(words[1:])


@pytest.mark.parametrize("page", BY_NAME)
def test_its_links_lead_somewhere(page: str) -> None:
    path = BY_NAME[page]
    for match in LINK.finditer(path.read_text(encoding="utf-8")):
        to = match["to"].partition("#")[0]
        if to and "://" not in to:
            assert (path.parent / to).exists(), f"{page} links to {to}"


@pytest.mark.parametrize("page", [name for name in BY_NAME if name.startswith("docs/")])
def test_it_is_in_the_navigation(page: str) -> None:
    text = (ROOT / "tools/docs/mkdocs.yml").read_text()
    assert f": {page.removeprefix('docs/')}\n" in text


@pytest.mark.parametrize("page", BY_NAME)
def test_the_files_that_it_names_exist(page: str) -> None:
    text = BY_NAME[page].read_text(encoding="utf-8")
    for name in re.findall(r"(?:benchmarks|examples|tools|tests|prunekit)/[\w/]+\.\w+", text):
        assert (ROOT / name).is_file(), f"{page} names {name}"
    for name in re.findall(r"-m (benchmarks[\w.]+)", text):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), f"{page} names {name}"


def test_recipes_load(tmp_path: Path) -> None:
    from prunekit.pipeline.recipes.prune import make_recipe

    every = [block for path in PAGES for block in blocks(path)]
    recipes = [b for b in every if b.language == "toml" and "file" in b.notes]
    assert recipes
    for block in recipes:
        path = tmp_path / "run.toml"
        path.write_text(block.body)
        make_recipe({}, path)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_sets_up_with_two_commands() -> None:
    text = README.read_text(encoding="utf-8").split("## Set-up")[1].split("\n## ")[0]
    first, second = [block for block in blocks(README) if block.body in text.replace("   ", "")][:2]
    install, *_, main = commands(first)
    assert install[:3] == ["python3", "-m", "venv"]
    assert shlex.join(main[:2]) == ".venv/bin/prunekit prune"
    assert commands(second) == [["tools/check"]]


def test_the_commands_that_the_readme_lists_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `prunekit ([a-z ]+?)(?: [A-Z-\[].*?)?` \|", text, re.MULTILINE)
    known = typer.main.get_command(app).commands
    assert {row.split()[0] for row in rows} == set(known)
    for row in rows:
        assert run([*row.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out
