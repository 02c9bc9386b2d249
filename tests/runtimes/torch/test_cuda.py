"""What a GPU does in PyTorch, on a double of CUDA."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.runtimes.torch import cuda as torch_cuda
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import UsageError
from support.nets import Residual, image, randomise


@pytest.fixture(scope="module")
def net():
    return randomise(Residual())


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_fp32_products_are_exact_unless_tf32_is_asked_for(precision):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    with torch_cuda.settings(precision):
        assert cudnn.allow_tf32 == matmul.allow_tf32 == (precision == "tf32")
        assert cudnn.benchmark
    assert before == (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)


class DoubleEvent:
    def __init__(self, machine, external):
        self.machine, self.external, self.at = machine, external, None

    def record(self):
        if self.machine.capturing is not None:
            assert self.external, "only external events tell times from inside a graph"
            self.machine.capturing.append(self._tick)
        else:
            assert not self.external
            self._tick()

    def _tick(self):
        self.machine.clock += 1.0
        self.at = self.machine.clock

    def synchronize(self):
        assert self.at is not None

    def elapsed_time(self, end):
        return end.at - self.at


class Machine:
    """What our code uses of torch.cuda; a graph holds the events, the kernels ran at capture."""

    def __init__(self, captures=True):
        self.capturing, self.clock, self.captures, self.replays = None, 0.0, captures, 0

    def graph(self, graph, stream):
        machine = self

        class Capture:
            def __enter__(self):
                if not machine.captures:
                    raise RuntimeError("operation not permitted when stream is capturing")
                machine.capturing = graph.steps

            def __exit__(self, *_):
                machine.capturing = None

        return Capture()

    def CUDAGraph(self):
        machine = self

        class Graph:
            def __init__(self):
                self.steps = []

            def replay(self):
                machine.replays += 1
                for step in self.steps:
                    step()

        return Graph()


@pytest.fixture
def machine(monkeypatch):
    def make(captures=True):
        made = Machine(captures)
        monkeypatch.setattr(torch_cuda, "event", lambda external=False: DoubleEvent(made, external))
        monkeypatch.setattr(torch_cuda, "watch", lambda number: None)
        for name, value in {
            "Stream": lambda number: "stream",
            "stream": lambda stream: nullcontext(),
            "device": lambda number: nullcontext(),
            "synchronize": lambda number=None: None,
            "graph": made.graph,
            "CUDAGraph": made.CUDAGraph,
            "get_device_properties": lambda number: SimpleNamespace(L2_cache_size=64),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return made

    return make


@pytest.fixture
def live(net):
    return live_artifact(net, image())


def on_double(precision="fp32"):
    """The code for GPUs with tensors that stay on the CPU."""
    return Target("torch", "cpu", precision)


def test_timing_replays_one_graph(machine, live):
    made = machine()
    engine = torch_cuda.CudaEngine(live, on_double(), Torch())
    assert engine.time(4) == [1.0] * 4
    assert made.replays == 4
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.time(1)


def test_what_cannot_be_captured_is_timed_eager(machine, live, capsys):
    made = machine(captures=False)
    engine = torch_cuda.CudaEngine(live, on_double(), Torch())
    assert engine.time(2) == [1.0] * 2
    assert made.replays == 0
    assert "cannot be captured as a CUDA graph (operation not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "asked", "last"),
    [("fp32", None, False), ("bf16", None, True), ("bf16", False, False), ("fp32", True, True)],
)
def test_tensor_cores_get_channels_last(machine, live, precision, asked, last):
    machine()
    engine = torch_cuda.CudaEngine(live, on_double(precision), Torch(channels_last=asked))
    (bound,) = engine._bound
    assert bound.is_contiguous(memory_format=torch.channels_last) == last or bound.shape[1] == 1
    assert bound.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)


@pytest.mark.parametrize("captures", [True, False])
def test_layers_are_timed_from_one_start_to_the_next(machine, live, captures):
    made = machine(captures)
    profiler = torch_cuda.CudaProfiler(live, on_double(), Torch())
    names = list(profiler._engine.layers())
    profiler.run(3)
    runs = profiler.finish()
    assert len(runs) == 2
    assert list(runs[0]) == names
    # one tick of the double's clock (1 ms) from event to event; the first from the network's start
    assert runs[0] == {name: pytest.approx(2e3 if name == names[0] else 1e3) for name in names}
    assert made.replays == (3 if captures else 0)
