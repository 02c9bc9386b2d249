"""What `prunekit profile` writes and names."""

import json
from pathlib import Path

from support.commands import ON_FAKE, Says


def test_profile_then_show_then_prune(prunekit: Says, home: Path) -> None:
    nets = ("--nets", "4", "--rounds", "3")
    status, out, err = prunekit(
        "profile", "net.py:tiny", *ON_FAKE, *nets, "-o", "new.json", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert (found["table"], found["networks"], found["rounds"]) == ("new.json", 4, 3)
    assert "profiling: done" in err
    assert sorted(p.name for p in home.glob("new*")) == ["new.json"]

    status, out, _ = prunekit("table", "show", "new.json", "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["target"]["runtime"] == "fake"
    assert len(shown["entries"]) == found["entries"]
    status, out, _ = prunekit("table", "show", "new.json")
    assert status == 0
    assert "fake device" in out

    before = (home / "new.json").read_bytes()
    status, _, err = prunekit(
        *("prune", "net.py:tiny", *ON_FAKE, "--table", "new.json"),
        *("--target-latency", "65%", "--epochs", 0, "-o", "again"),
    )
    assert status == 0
    assert "profiling" not in err
    assert (home / "new.json").read_bytes() == before
    assert not (home / "again" / "table.json").exists()


def test_profile_names_its_table(prunekit: Says, home: Path) -> None:
    nets = ("--nets", "4", "--rounds", "1")
    status, out, err = prunekit("profile", "net.py:tiny", *ON_FAKE, *nets, "-q")
    assert (status, err) == (0, "")
    assert out == "latency table: tiny-fake_cpu-1x1x8x8-1t.json\n"
    assert (home / "tiny-fake_cpu-1x1x8x8-1t.json").is_file()
