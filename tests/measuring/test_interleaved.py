"""Engines timed in turns: their order, interrupted samples, engines closed."""

import numpy as np
import pytest

from prunekit.measuring import interleaved as racing
from prunekit.measuring.bench import bench
from prunekit.support.registry import runtimes
from support.machine import Machine, ms


@pytest.fixture
def machine(monkeypatch):
    """Make a machine the target `machine`, and its time the time that passes."""

    def make(**facts):
        made = Machine(**facts)
        monkeypatch.setitem(runtimes._loaded, "machine", lambda: made)
        monkeypatch.setattr(racing.time, "perf_counter", lambda: made.now)
        monkeypatch.setattr(racing, "switch_counter", lambda _threads: lambda: 0)
        return made

    return make


def test_artifacts_take_short_turns_in_changing_order(machine):
    made = machine()
    bench([ms(4), ms(5)], "machine", max_seconds=2)
    turns = [made.order[0]]
    for value in made.order:
        if value != turns[-1]:
            turns.append(value)
    assert len(turns) > 20
    gaps = np.diff([i for i, v in enumerate(made.order) if i and v != made.order[i - 1]])
    assert np.median(gaps) <= 8


def test_interrupted_samples_are_dropped_while_enough_remain(machine, monkeypatch):
    machine()
    count = iter(range(10**9))
    state = {"ticks": 0}

    def every_fourth(_threads):
        def read():
            if next(count) % 4 == 0:
                state["ticks"] += 1
            return state["ticks"]

        return read

    monkeypatch.setattr(racing, "switch_counter", every_fourth)
    result = bench([ms(2), ms(2)], "machine", max_seconds=1)
    dropped, kept = result.measurements[0].dropped, len(result.samples_ms[0])
    assert 0.1 < dropped / (dropped + kept) < 0.4
    monkeypatch.setattr(racing, "switch_counter", lambda _threads: lambda: next(count))
    result = bench([ms(2), ms(2)], "machine", max_seconds=1)
    assert result.measurements[0].dropped == 0


def test_realswitch_counter_never_falls():
    for threads in (1, 2):
        counter = racing.switch_counter(threads)
        assert 0 <= counter() <= counter()


def test_engines_are_closed_when_interrupted(machine, monkeypatch):
    made = machine()
    monkeypatch.setattr(
        racing.InterleavedTimer, "round", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        bench([ms(5), ms(5)], "machine")
    assert made.closed == made.loads == 2
