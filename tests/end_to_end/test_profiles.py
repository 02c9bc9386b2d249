"""Profiles by several processes, and after one was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from prunekit.latency import LatencyTable
from prunekit.profiling.locking import locked
from support.commands import ON_FAKE, Says
from support.tables import widths


def test_shards_on_the_command_line(prunekit: Says, home: Path, monkeypatch, device):
    nets = ("--nets", 5, "--rounds", 1, "-o", "new.json")
    command = ("profile", "net.py:tiny", *ON_FAKE, *nets)
    assert prunekit(*command, "--shard", "1/2", "-q")[0] == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = prunekit(*command)
    assert status == 2
    assert "several processes would measure the same networks; add --shard auto" in err
    status, out, _ = prunekit(*command, "--shard", "auto", "--json")
    assert (status, json.loads(out)["table"]) == (0, "new.2of2.json")
    status, _, err = prunekit("table", "merge", "new.2of2.json", "table.json", "-o", "part.json")
    assert status == 0
    assert "note: shard 1/2 of net.py:tiny (" in err
    assert ") is missing; the table holds what the others measured" in err
    status, _, err = prunekit("table", "merge", *sorted(home.glob("new.*")), "-o", "new.json")
    assert status == 0
    assert "missing" not in err
    assert prunekit(*command[:-2], "-o", "whole.json")[0] == 0
    assert widths(LatencyTable.load("new.json")) == widths(LatencyTable.load("whole.json"))
    status, _, err = prunekit(*command, "--shard", "1/5")
    assert status == 2
    assert "only 4 to share out; give --nets 6 or more, or fewer shards" in err
    names = {"new.1of2.json", "new.2of2.json", "new.json"}
    assert {path.name for path in home.glob("new*")} == names


SLOW = """
import pathlib, time
import prunekit.profiling.measuring as found
inner, journal = found.Rounds.run, pathlib.Path("new.json.journal.jsonl")
def slowly(*a, **k):
    done = inner(*a, **k)
    if journal.exists() and len(journal.read_text().splitlines()) >= 3:
        time.sleep(60)  # until it is killed
    return done
found.Rounds.run = slowly
from prunekit.cli.main import main
main()
"""


def test_a_second_profile_is_refused_and_a_killed_one_gone_on_with(prunekit: Says, home: Path):
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 12, "-o", "new.json")
    journal, lock = home / "new.json.journal.jsonl", home / "new.json.journal.jsonl.lock"

    def lines() -> int:
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, command)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(home)},
    ) as other:
        deadline = time.monotonic() + 60
        while lines() < 3 and other.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        for more in ((), ("--resume",), ("--overwrite",)):
            status, _, err = prunekit(*command, *more, "-q")
            assert status == 2
            assert err.startswith(f"prunekit: process {other.pid} on ")
            assert err.endswith(
                " is measuring for new.json already; wait for its end or give another -o\n"
            )
        finished = lines() - 1
        other.send_signal(signal.SIGKILL)
        other.wait()
    kept = lines() - 1
    assert finished <= kept <= 4
    assert lock.exists()  # of a dead process: it locks nothing
    status, out, err = prunekit(*command, "--resume", "--json")
    assert status == 0
    assert f"profile: {kept} rounds taken from new.json.journal.jsonl" in err
    assert json.loads(out)["rounds"] == 12
    assert [path.name for path in home.glob("new*")] == ["new.json"]


def test_a_table_that_another_profile_has_finished_meanwhile_stays(
    prunekit: Says, home: Path, monkeypatch
):
    from prunekit.pipeline import table as tables

    def after_another(path, output):
        output.write_text("another's")
        return locked(path, output)

    monkeypatch.setattr(tables, "locked", after_another)
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "-q", "-o", "new.json")
    status, _, err = prunekit(*command)
    assert status == 2
    assert err == "prunekit: output new.json was written meanwhile; use --overwrite or another -o\n"
    assert (home / "new.json").read_text() == "another's"
