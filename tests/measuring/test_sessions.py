"""Several sessions: how long they are, when they have settled, what they say together."""

import numpy as np
import pytest

from prunekit.core.estimate import DRIFT
from prunekit.measuring.sessions import FEWEST, LONGEST, SHORTEST, Sessions
from support.machine import machine, ms  # noqa: F401 - a fixture


def test_sessions_are_loadings_with_a_bias_each(machine):  # noqa: F811
    made = machine(seed=3, bias=0.02)
    sessions = Sessions([ms(5), ms(2.5)], "machine", 0, 60)
    for _ in range(10):
        sessions.add()
    assert made.loads == made.closed == 20
    ratios = [session.ratio(1) for session in sessions.finished]
    assert np.std(ratios) / 0.5 > 0.01
    known = sessions.ratio(1, 0.95)
    assert known.sessions == sessions.count == 10
    assert known.rounds == sessions.rounds >= 30
    assert known.low < 0.5 < known.high
    assert known.estimate.spread == pytest.approx(np.std(np.log(ratios), ddof=1), rel=0.2)


def test_short_measurements_have_short_sessions(machine):  # noqa: F811
    made = machine()
    for seconds, least, most in ((1, SHORTEST, 0.5), (60, LONGEST, 1.2)):
        sessions = Sessions([ms(5), ms(5)], "machine", 0, seconds)
        began = made.now
        sessions.add()
        assert least <= made.now - began <= most


def test_it_settles_when_the_interval_is_narrow_or_gets_no_narrower(machine):  # noqa: F811
    machine(noise=0.01, bias=0.0, slow=1.0)
    sessions = Sessions([ms(5), ms(2.5)], "machine", 0, 60)
    for _ in range(FEWEST):
        sessions.add()
    assert sessions.settled(0.02, 0.95)
    assert not sessions.settled(DRIFT / 10, 0.95)
    for _ in range(40):
        sessions.add()
    assert sessions.settled(DRIFT / 10, 0.95)


def test_one_artifact_settles_on_its_milliseconds(machine):  # noqa: F811
    machine(noise=0.01, bias=0.0, slow=1.0)
    sessions = Sessions([ms(5)], "machine", 0, 60)
    for _ in range(30):
        sessions.add()
    assert sessions.settled(0.05, 0.95)
    measured = sessions.measurement(0)
    assert len(measured.session_medians_ms) == 30
    low, high = measured.interval()
    assert low < 5 < high
    assert sessions.note() == f"{np.median(measured.session_medians_ms):.3f} ms"
