"""Work that takes too long is stopped, also where it catches ordinary errors."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest

from prunekit.support.time_limit import OutOfTimeError, time_limit


def stubborn() -> None:
    with contextlib.suppress(Exception):
        while True:
            time.sleep(0.01)


def test_it_stops():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTimeError), time_limit(0.05):
        stubborn()
    assert signal.getsignal(signal.SIGALRM) is before


def test_it_lets_through_what_is_quick_and_what_has_no_limit():
    done = []
    for limit in (None, 60.0):
        with time_limit(limit):
            done.append(limit)
    thread = threading.Thread(target=lambda: [done.append(1) for _ in [0] if not _enter()])
    thread.start()
    thread.join()
    assert done == [None, 60.0, 1]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def _enter() -> None:
    with time_limit(60.0):
        pass
