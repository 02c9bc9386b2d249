"""The fake runtime: its formula, and its noise."""

import numpy as np
import pytest

from prunekit.core.target import Target
from prunekit.runtimes.fake import Fake


def test_fake_follows_its_formula(exported):
    _, artifact = exported("mobile")
    quiet = Fake(noise=0.0)
    target = Target("fake")
    (ms,) = quiet.load(artifact, target).time(1)
    profiler = quiet.profiler(artifact, target)
    profiler.run(2)
    (run,) = profiler.finish()
    assert ms == pytest.approx((sum(run.values()) + quiet.overhead_us) / 1e3)
    assert run["body.0"] == pytest.approx(2 + 0.004 * 2 * 1 * 9 * 256)
    assert run["body.3"] == pytest.approx(2 + 0.004 * 2 * 1 * 9 * 256)
    assert run["body.6"] == pytest.approx(2 + 0.004 * 2 * 4 * 256)
    halved = Target("fake", precision="fp16")
    assert quiet.load(artifact, halved).time(1)[0] < ms
    assert quiet.granularity(target) == 8


def test_fake_noise_differs_from_load_to_load_and_is_small(exported):
    _, artifact = exported("mobile")
    one, two = (Fake().load(artifact, Target("fake")).time(200) for _ in range(2))
    assert one != two
    assert np.std(np.log(one)) == pytest.approx(0.02, rel=0.3)
    assert np.median(one) == pytest.approx(np.median(two), rel=0.02)
