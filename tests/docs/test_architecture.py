"""The floor plan is the one that is enforced, and the newcomer's walk leads through real files."""

import re
import sys

from pages import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "prunekit"


def _section(title: str) -> str:
    return TEXT.split(f"## {title}")[1].split("\n## ")[0]


def test_the_walk_has_at_most_fifteen_stops_and_none_twice() -> None:
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", _section("One channel"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    files = [name for _, name in rows]
    assert 8 <= len(files) <= 15
    assert len(set(files)) == len(files)
    for name in files:
        assert (PACKAGE / name).is_file(), name
    assert files[0].startswith("tracing/")
    assert files[-1].startswith("exporting/")


def test_the_files_beside_it_exist() -> None:
    for title in ("Where a command runs", "Files, once"):
        files = re.findall(r"`([\w/]+\.py)`", _section(title))
        assert files
        for name in files:
            assert (PACKAGE / name.removeprefix("prunekit/")).is_file(), name


def test_the_floors_are_those_of_the_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in settings["contracts"] if c["type"] == "layers"]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", _section("The floors"), re.MULTILINE)
    drawn = [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows]
    assert drawn == [set(re.findall(r"\w+", layer)) for layer in layers]
    assert [int(number) for number, _ in rows] == list(range(len(rows), 0, -1))


def test_every_room_is_told_of() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"zoo"}
    told = re.findall(r"^\| `(\w+)` \|", _section("The rooms"), re.MULTILINE)
    assert sorted(told) == sorted(rooms)


def test_every_decision_is_listed() -> None:
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    listed = re.findall(r"\(\.\./tools/decisions/([\w-]+\.md)\)", text)
    assert listed == sorted(path.name for path in (ROOT / "tools/decisions").glob("*.md"))
