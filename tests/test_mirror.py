"""Tests mirror the package: `tests/<room>/test_<module>.py`, or where tests/README.md says."""

import ast
import re

import pytest

from support import ROOT, TESTS

PACKAGE = ROOT / "prunekit"
ROW = re.compile(r"^\| `(?P<module>[\w/]+\.py)` \| (?P<places>`[^|]+`) \| (?P<why>[^|]+) \|$", re.M)
ELSEWHERE = {m["module"]: m for m in ROW.finditer((TESTS / "README.md").read_text())}
"""Modules whose tests lie elsewhere, with the places and the reason."""


def has_logic(text: str) -> bool:
    nodes = ast.walk(ast.parse(text))
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)


MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py") and has_logic(path.read_text())
)


def own(module: str) -> str:
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}" if folder else f"test_{name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_tests(module: str):
    if (TESTS / own(module)).exists():
        assert module not in ELSEWHERE, f"tests/{own(module)} exists: its row can go"
    else:
        assert module in ELSEWHERE, f"write tests/{own(module)}, or a row in tests/README.md"


def test_the_table_is_of_what_is_there():
    assert set(ELSEWHERE) <= set(MODULES)
    places = {p for row in ELSEWHERE.values() for p in re.findall(r"`([^`]+)`", row["places"])}
    assert [place for place in sorted(places) if not (TESTS / place).exists()] == []


def test_every_file_of_tests_says_what_it_holds():
    files = [*TESTS.rglob("test_*.py"), *(TESTS / "support").glob("*.py")]
    silent = [f for f in files if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []
