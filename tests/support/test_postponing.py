"""A module that is only named while others are imported is imported when it is used."""

import sys

import pytest

from prunekit.support.postponing import postponing

NAME = "slow_to_import"


@pytest.fixture
def slow(tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.py").write_text("def double(x):\n    return 2 * x\n\n\nTHREE = 3\n")
    (tmp_path / "takes_one.py").write_text(
        f"from {NAME} import double\n\n\ndef four():\n    return double(2)\n"
    )
    (tmp_path / "takes_another.py").write_text(f"from {NAME} import THREE\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in (NAME, "takes_one", "takes_another"):
        sys.modules.pop(name, None)


def test_it_is_imported_when_it_is_called(slow):
    with postponing(NAME, "double"):
        import takes_one
    assert NAME not in sys.modules
    assert takes_one.four() == 4
    assert sys.modules[NAME].THREE == 3


def test_whatever_else_is_asked_for_is_the_real_one(slow):
    with postponing(NAME, "double"):
        import takes_another
    assert takes_another.THREE == 3
    assert sys.modules[NAME].__file__


def test_what_is_imported_already_stays(slow):
    import slow_to_import

    with postponing(NAME, "double"):
        assert sys.modules[NAME] is slow_to_import
    assert sys.modules[NAME] is slow_to_import


def test_an_error_leaves_nothing_behind(slow):
    with pytest.raises(ZeroDivisionError), postponing(NAME, "double"):
        raise ZeroDivisionError
    assert NAME not in sys.modules
