"""Code that exits, and bugs, are no success."""

import sys
from pathlib import Path

import pytest

from support.commands import Says


@pytest.mark.parametrize(
    ("code", "status"), [(0, 2), (None, 2), (7, 7), ("no disk", 2), (False, 2)]
)
def test_an_exit_is_no_success(
    prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch, code: object, status: int
) -> None:
    from prunekit.latency import LatencyTable

    def quits(path: Path) -> None:
        sys.exit(code)  # type: ignore[arg-type]

    monkeypatch.setattr(LatencyTable, "load", quits)
    found, _, err = prunekit("table", "show", "table.json")
    assert (found, err) == (status, f"prunekit: some code that ran has called sys.exit({code!r})\n")


def test_a_bug_is_no_answer(prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.latency import LatencyTable

    def broken(path: Path) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(LatencyTable, "load", broken)
    status, _, err = prunekit("table", "show", "table.json")
    assert status == 2
    assert err.startswith("prunekit: unexpected KeyError at test_exits.py:")
    assert err.count("\n") == 1
