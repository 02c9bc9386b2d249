"""Every example in a docstring works."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest
from pages import ROOT, inside

PACKAGE = ROOT / "prunekit"


def _docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]


SOURCES = sorted(PACKAGE.rglob("*.py"))
WITH_EXAMPLES = [path for path in SOURCES if any(">>>" in text for text in _docstrings(path))]


def test_some_have_examples_and_all_are_of_the_kind_that_runs() -> None:
    assert len(WITH_EXAMPLES) >= 8
    for path in SOURCES:
        assert not any("```" in text for text in _docstrings(path)), path


@pytest.mark.parametrize(
    "path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE).with_suffix(""))
)
def test_they_work(path: Path, tmp_path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    with inside(tmp_path):
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
