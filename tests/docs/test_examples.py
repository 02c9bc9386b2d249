"""Every example runs, is short, and stands in the table of the documentation."""

import re
import runpy
from pathlib import Path

import pytest
from pages import ROOT, inside

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 90


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = None
    with inside(tmp_path):
        try:
            runpy.run_path(str(example), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    assert not status
    assert capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_it_shows(example: Path) -> None:
    lines = example.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert re.fullmatch(r'"""[A-Z].+[.]"""', lines[0])


def test_the_table_has_them_all() -> None:
    text = (ROOT / "docs/examples.md").read_text()
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(\.\./examples/\1\)", text, re.MULTILINE)
    assert sorted(listed) == [path.name for path in EXAMPLES]
