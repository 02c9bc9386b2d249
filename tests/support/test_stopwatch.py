"""Seconds by stage."""

import json

import pytest

from prunekit.support import stopwatch
from prunekit.support.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_a_stage_inside_another_is_counted_once(clock):
    watch = Stopwatch()
    with watch.stage("landing"):
        clock(1)
        with watch.stage("exporting"):
            clock(2)
        clock(4)
    clock(100)
    with watch.stage("exporting"):
        clock(8)
    assert watch.seconds == {"landing": 5, "exporting": 10}
    assert watch.whole == 15


def test_announced_stages_are_told_once_with_their_number(clock, capsys):
    watch = Stopwatch()
    watch.announce(["profiling", "landing"])
    with watch.stage("profiling"):
        clock(90)
    for _ in range(2):
        with watch.stage("landing"):
            clock(1)
    assert capsys.readouterr().err.splitlines() == [
        "stage 1 of 2, after 0.0 min: profiling",
        "stage 2 of 2, after 1.5 min: landing",
    ]


def test_a_resumed_run_goes_on_counting(clock, tmp_path):
    path = tmp_path / "seconds.json"
    first = Stopwatch()
    first.keep_in(path)
    with first.stage("training"):
        clock(3)
    assert json.loads(path.read_text()) == {"training": 3}
    second = Stopwatch()
    second.keep_in(path)

    def interrupted():
        with second.stage("training"):
            clock(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text()) == {"training": 7}
    second.restart()
    assert not second.seconds
