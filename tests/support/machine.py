"""A simulated machine with engines of known speed."""

import numpy as np
import pytest

from prunekit.core.artifact import Artifact
from prunekit.core.target import Environment
from prunekit.measuring import interleaved as racing
from prunekit.support.registry import runtimes


class Machine:
    """A runtime whose artifacts' paths are their milliseconds, on a machine with two states.

    Loading gives a session a bias of its own; time passes as runs say it does.
    """

    name = "machine"
    artifact_format = "onnx"
    formats = ("onnx",)
    devices = ("cpu",)
    precisions = ("fp32",)
    casts = True

    def __init__(self, seed=0, noise=0.03, bias=0.003, slow=1.25, dwell_ms=2000.0, clock=None):
        self.rng = np.random.default_rng(seed)
        self.noise, self.bias, self.slow, self.dwell_ms = noise, bias, slow, dwell_ms
        self.state, self.loads, self.closed, self.order, self.now = False, 0, 0, [], 0.0

    def unavailable(self, target):
        return None

    def environment(self, target):
        return Environment("machine", "1")

    def load(self, artifact, target):
        self.loads += 1
        return Session(self, float(artifact.path or 5))


class Session:
    def __init__(self, machine, ms):
        self.machine = machine
        self.ms = ms
        self.bias = np.exp(machine.rng.normal(0, machine.bias))

    def time(self, runs):
        machine, out = self.machine, []
        for _ in range(runs):
            if machine.rng.random() < self.ms / machine.dwell_ms:
                machine.state = not machine.state
            ms = self.ms * self.bias * np.exp(machine.rng.normal(0, machine.noise))
            if machine.rng.random() < 0.02:
                ms *= 1 + machine.rng.exponential(0.5)
            out.append(float(ms * (machine.slow if machine.state else 1)))
            machine.now += out[-1] / 1e3
            machine.order.append(self.ms)
        return out

    def close(self):
        self.machine.closed += 1


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


def ms(value):
    return Artifact(str(value), "onnx")
