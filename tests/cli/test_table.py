"""What `prunekit table` says, joins, compares, draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from prunekit.core.target import Environment, Target
from prunekit.profiling.sharding import parse_shard
from prunekit.support.errors import UsageError
from support.commands import ON_FAKE, Says
from support.tables import made


def test_merge_on_the_command_line(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        made(2 * number, 4).save(f"{number}.json")
    names = [f"{number}.json" for number in range(3)]
    assert prunekit("table", "merge", *names, "-o", "a.json")[0] == 0
    status, out, err = prunekit("table", "merge", *reversed(names), "-o", "b.json", "--json")
    assert (status, err) == (0, "")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert (json.loads(out)["networks"], json.loads(out)["sessions"]) == (12, 3)
    status, _, err = prunekit("table", "merge", *names, "-o", "a.json")
    assert (status, err) == (2, "prunekit: output a.json exists; use --overwrite or another -o\n")
    status, _, err = prunekit("table", "merge", "0.json", "-o", "c.json")
    assert (status, err) == (2, "prunekit: merge takes two tables or more\n")
    assert prunekit("table", "merge", "0.json", "none.json", "-o", "c.json")[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "a.json", "b.json"]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "2", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_shards_that_cannot_be_read(shard):
    with pytest.raises(UsageError, match=r"cannot read --shard .*; write 1/4 to 4/4, or auto"):
        parse_shard(shard)


def test_diff_on_the_command_line(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(0, 4).save("a.json")
    environment = Environment("device", "2", isa=("avx2",), packages={"numpy": "2.0"})
    other = made(1, 4, target=Target("fake", threads=2), environment=environment)
    other.save("b.json")
    status, out, err = prunekit("table", "diff", "a.json", "b.json")
    assert (status, err) == (0, "")
    assert "runtime version: 1 in A, 2 in B" in out
    assert "numpy: none in A, 2.0 in B" in out
    assert "only in A: conv 3x3 8x8" in out
    assert "no network is in both" in out
    status, out, _ = prunekit("table", "diff", "a.json", "b.json", "--json")
    found = json.loads(out)
    assert status == 0
    assert [fact["what"] for fact in found["differences"]] == [
        *("target", "runtime version", "isa", "numpy")
    ]
    assert len(found["shapes"]) == 2
    assert found["only_a"] == ["conv 3x3 8x8"]
    status, out, _ = prunekit("table", "diff", "a.json", "a.json")
    assert "same target, device and versions" in out


def test_show_draws_staircases(prunekit: Says, home: Path):
    show = ("table", "show", "table.json")
    status, out, _ = prunekit(*show)
    assert status == 0
    assert "█" in out
    status, out, _ = prunekit(*show, "--layer", "3x3/2")
    assert "conv 3x3/2 8x8->4x4 +mean +relu, in-width 32" in out
    assert out.count("█" * 40) == 2
    status, out, _ = prunekit(*show, "--layer", "3x3/2", "--json")
    assert [row["shape"] for row in json.loads(out)["entries"]] == [
        "conv 3x3/2 8x8->4x4 +mean +relu"
    ]
    for name in ("a.html", "a.svg"):
        status, _, err = prunekit(*show, "--plot", name)
        assert (status, err) == (0, f"staircases: {name}\n")
        page = (home / name).read_text()
        assert page.count("<polyline") == 4  # the first and the last layer have one width
        for outside in ("src=", "href=", "url(", "@import", "<script"):
            assert outside not in page
    root = ElementTree.parse(home / "a.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([*root.iter("{http://www.w3.org/2000/svg}circle")]) > 5


def test_names_are_escaped(tmp_path: Path, prunekit: Says):
    environment = Environment("<b>&</b>", "1")
    made(0, 4, environment=environment).save(tmp_path / "t.json")
    for suffix in ("html", "svg"):
        path = tmp_path / f"t.{suffix}"
        assert prunekit("table", "show", tmp_path / "t.json", "--plot", path)[0] == 0
        assert "<b>" not in path.read_text()


def test_a_png_needs_matplotlib(prunekit: Says, home: Path, monkeypatch):
    plot = ("table", "show", "table.json", "--layer", "conv", "--plot", "a.png")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        status, out, err = prunekit(*plot)
    assert (status, out) == (2, "")
    assert err == (
        "prunekit: a PNG needs matplotlib, which is not installed; pip install matplotlib, or use "
        ".svg\n"
    )
    assert not (home / "a.png").exists()
    pytest.importorskip("matplotlib")
    assert prunekit(*plot)[0] == 0
    assert (home / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "pool"), "no layer shape of this table matches --layer 'pool'; it has "),
        (("--plot", "a.gif"), "cannot draw a .gif; use .html, .svg or .png"),
        (("--plot", "a"), "cannot draw a file without suffix; use .html, .svg or .png"),
        (("--plot", "net.py"), "output net.py exists; use --overwrite or another -o"),
    ],
)
def test_show_refuses(arguments, message, prunekit: Says, home: Path):
    before = sorted(home.iterdir())
    status, out, err = prunekit("table", "show", "table.json", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"prunekit: {message}")
    assert sorted(home.iterdir()) == before


def test_transfer_on_the_command_line(prunekit: Says, home: Path, device):
    profiled = ("profile", "net.py:tiny", *ON_FAKE, "-o", "new.json", "--rounds", 2)
    status, _, err = prunekit(*profiled, "--transfer", "table.json", "--shard", "1/2")
    assert (status, "exclude each other" in err) == (2, True)
    itself = (*profiled[:-4], "-o", "table.json", "--transfer", "table.json", "--overwrite")
    status, _, err = prunekit(*itself)
    assert (status, "--transfer and --output are both table.json" in err) == (2, True)
    status, out, _ = prunekit(*profiled, "--transfer", "table.json", "--json")
    found = json.loads(out)
    assert (status, found["networks"], found["rounds"]) == (0, 5, 2)
    status, out, _ = prunekit("table", "show", "new.json")
    assert "layers measured on fake device, 1" in out
    status, _, err = prunekit(
        "profile", "net.py:medium", *profiled[2:-3], "n.json", "--transfer", "new.json"
    )
    assert status == 2
    assert "run `prunekit profile` for this" in err
    prune = ("prune", "net.py:tiny", *ON_FAKE, "--table", "new.json", "--epochs", 0, "-o", "run2")
    assert prunekit(*prune, "--target-latency", "65%", "-q")[0] == 0
    assert "transfer from fake device" in (home / "run2" / "report.html").read_text()
