"""Inputs that timings are taken with."""

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes.base import timing_inputs


def test_timing_inputs_are_fixed():
    artifact = Artifact("x", "module", input_shapes={"a": (-1, 3), "b": (2,)})
    first, again = (timing_inputs(artifact, Target("torch", batch=4)) for _ in range(2))
    assert first["a"].shape == (4, 3)
    assert first["b"].shape == (2,)
    np.testing.assert_array_equal(first["a"], again["a"])
