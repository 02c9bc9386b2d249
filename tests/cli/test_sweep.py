"""Sweeps, and several budgets on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunekit.latency import LatencyTable
from prunekit.report.sweep import Sweep
from prunekit.support.errors import InfeasibleError
from prunekit.support.files import load_json
from support.commands import ON_FAKE, SWEEP, Says


def test_a_sweep_refuses_before_it_measures(prunekit: Says, home: Path):
    for wrong in (("--solver", "best"), ("--criterion", "beauty")):
        status, _, err = prunekit("sweep", "net.py:tiny", *ON_FAKE, "-o", "new.json", *wrong)
        assert status == 2
        assert "profiling" not in err
        assert not list(home.glob("new*"))


def test_a_sweep_is_the_curve_of_best_plans(prunekit: Says, home: Path):
    status, out, _ = prunekit(*SWEEP, "--points", 8, "--plot", "s.html", "--json")
    assert status == 0
    found = load_json(home / "sweep.json", Sweep, "sweep", 1)
    assert json.loads(out)["points"][0]["ratio"] == found.points[0].ratio
    ratios = [p.ratio for p in found.points]
    kept = [p.kept for p in found.points]
    assert ratios == sorted(ratios, reverse=True)
    assert kept == sorted(kept, reverse=True)
    assert all(p.ratio <= p.asked + 1e-4 and p.gap < 0.05 for p in found.points)
    assert all(p.low_ms <= p.ms <= p.high_ms for p in found.points)
    assert sum(p.knee for p in found.points) == 1
    last = found.points[-1]
    table = LatencyTable.load(home / "table.json")
    assert all(width <= table.granularity for width in last.widths.values() if width != 10)
    page = (home / "s.html").read_text()
    assert page.count("<tr class=") == 1
    for group in found.sizes:
        assert f"<td>{group}</td>" in page


def test_a_sweep_profiles_where_it_has_no_table(prunekit: Says, home: Path):
    status, out, _ = prunekit("sweep", "net.py:tiny", *ON_FAKE, "-o", "new.json", "--points", 4)
    assert status == 0
    assert "knee" in out
    assert out.endswith("plans: new.json\n")
    LatencyTable.load(home / "new-table.json")
    status, _, err = prunekit("sweep", "net.py:tiny", *ON_FAKE, "-o", "new.json")
    assert status == 2
    assert err == "prunekit: output new.json exists; use --overwrite or another -o\n"


def test_a_sweep_does_not_write_over_its_own_files(prunekit: Says, home: Path):
    table = (home / "table.json").read_bytes()
    for flags, message in (
        (("-o", "same.html", "--plot", "same.html"), "--output and --plot are both same.html"),
        (("-o", "table.json", "--overwrite"), "--table and --output are both table.json"),
        (("-o", home / "table.json", "--overwrite"), "--table and --output are both"),
    ):
        status, out, err = prunekit(*SWEEP, *flags)
        assert (status, out) == (2, "")
        assert message in err
        assert err.endswith("; give two files\n")
    assert (home / "table.json").read_bytes() == table
    assert not (home / "same.html").exists()


def test_a_failed_sweep_names_the_profile_it_keeps(prunekit: Says, home: Path, monkeypatch):
    sweep = ("sweep", "net.py:tiny", *ON_FAKE, "-o", "new.json", "--points", 3)
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.pipeline.sweep.dense_scores", raising(InfeasibleError("no")))
        status, _, err = prunekit(*sweep)
    assert status == 1
    assert err.splitlines()[-1] == "prunekit: no; the profile is kept: --table new-table.json"
    status, _, err = prunekit(*sweep)
    assert status == 2
    assert err == (
        "prunekit: the profile of an earlier sweep is at new-table.json; use it (--table "
        "new-table.json), --overwrite or another -o\n"
    )
    assert prunekit(*sweep, "--table", "new-table.json")[0] == 0


def raising(error: Exception):
    def call(*_: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--points", 1), "Invalid value for '--points'"),
        (("--plot", "s.png"), "cannot draw s.png; use a .html file"),
        (("--criterion", "taylor"), "--criterion taylor needs data; add --data"),
        (("--solver", "best"), "best"),
    ],
)
def test_bad_sweeps(flags, message, prunekit: Says, home: Path):
    status, out, err = prunekit(*SWEEP, *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (home / "sweep.json").exists()


PRUNE = (
    *("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--epochs", 0),
    *("--target-latency", "70%", "-o", "new"),
)


def test_prune_keeps_further_limits(prunekit: Says, home: Path):
    status, out, _ = prunekit(*PRUNE, "--limit", "params=30%", "--limit", "macs=60%", "--json")
    assert status == 0
    report = json.loads(out)
    assert report["latency"]["met"]
    assert report["params"]["pruned"] <= 0.31 * report["params"]["dense"]
    assert report["macs"]["pruned"] <= 0.6 * report["macs"]["dense"]
    assert (
        'limit = [\n    "params=30%",\n    "macs=60%",\n]' in (home / "new/config.toml").read_text()
    )


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (("--limit", "30%"), "'30%' is a latency; write macs=40% or params=1.5M", 2),
        (("--limit", "flops=30%"), "unknown budget kind 'flops'", 2),
        (("--limit", "macs=40%", "--solver", "greedy"), "greedy takes one budget only", 2),
        (("--limit", "params=5"), "no plan was found within", 1),
    ],
)
def test_bad_limits(flags, message, code, prunekit: Says, home: Path):
    status, out, err = prunekit(*PRUNE, *flags)
    assert (status, out) == (code, "")
    assert message in err.splitlines()[-1]
