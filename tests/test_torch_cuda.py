"""PyTorch beyond the CPU's eager mode: packages, and what a GPU does on a double of CUDA."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from core_nets import Residual, image, randomise

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.exporting.package import export_package
from prunekit.latency.probe import block_of
from prunekit.profiling.probing import GPU_WIDTHS
from prunekit.runtimes import runtime_for
from prunekit.runtimes.sidecar import facts_path
from prunekit.runtimes.torch import cuda as torch_cuda
from prunekit.runtimes.torch import package as torch_package
from prunekit.runtimes.torch.module import spans
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError

CPU = Target("torch")


@pytest.fixture(scope="module")
def net():
    return randomise(Residual())


@pytest.fixture(scope="module")
def package(net, tmp_path_factory):
    """Compiled once: it takes the compiler half a minute."""
    path = tmp_path_factory.mktemp("package") / "net.pt2"
    try:
        return export_package(net, image(), path, CPU)
    except Exception as error:
        if "compiler" in str(error).lower():
            pytest.skip(f"AOTInductor needs a C++ compiler: {error}")
        raise


@pytest.mark.slow
def test_a_package_gives_the_models_outputs_at_any_batch(net, package):
    assert package.apart < 1e-4
    loaded = Artifact.of_file(package.path)
    assert loaded.format == "aotinductor"
    engine = runtime_for(CPU).load(loaded, CPU)
    for batch in (1, 3):
        x = torch.randn(batch, *image().shape[1:], generator=torch.Generator().manual_seed(batch))
        (found,) = engine.run({"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-4, atol=1e-4)
    assert len(engine.time(3)) == 3
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.time(1)


@pytest.mark.slow
def test_a_package_is_refused_where_it_is_not_for(package, monkeypatch, tmp_path):
    loaded = Artifact.of_file(package.path)
    with pytest.raises(UsageError, match="was compiled for torch:cpu, not torch:cpu:bf16"):
        Torch().load(loaded, Target("torch", precision="bf16"))
    with monkeypatch.context() as elsewhere:
        other = SimpleNamespace(runtime_version="torch 1", device_name="x")
        elsewhere.setattr(torch_package, "torch_environment", lambda _: other)
        with pytest.raises(
            RuntimeUnavailableError, match=r"for PyTorch torch .*, and here is torch"
        ):
            Torch().load(loaded, CPU)
    kept = facts_path(package.path).read_text()
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(Path(package.path).read_bytes() + b"x")
    with pytest.raises(FileError, match="has no description"):
        Torch().load(Artifact.of_file(copy), CPU)
    facts_path(copy).write_text(kept)
    with pytest.raises(FileError, match="is not the file that"):
        Torch().load(Artifact.of_file(copy), CPU)
    assert json.loads(kept)["precision"] == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_a_cpu_is_not_timed_in(precision):
    with pytest.raises(RuntimeUnavailableError, match="PyTorch on a CPU is timed in fp32 and bf16"):
        runtime_for(Target("torch", "cpu", precision))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_why_there_is_no_gpu():
    reason = Torch().unavailable(Target("torch", "cuda"))
    assert "sees no CUDA GPU" in reason or "without CUDA" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_fp32_products_are_exact_unless_tf32_is_asked_for(precision):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    with torch_cuda.settings(precision):
        assert cudnn.allow_tf32 == matmul.allow_tf32 == (precision == "tf32")
        assert cudnn.benchmark
    assert before == (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)


def test_a_layer_lasts_until_the_next_begins():
    stamps = [("a", 1.0), ("b", 3.0), ("a", 4.0)]
    assert spans(stamps, 0.5, 6.0) == {"a": pytest.approx(4.5e6), "b": pytest.approx(1e6)}


@pytest.mark.parametrize("block", [8, 16, 32, 64])
def test_the_widths_probed_on_gpus_tell_the_blocks_of_tensor_cores(block):
    """A staircase with a slope of its own on every step, and a cost of launching."""
    times = {w: 4.0 + -(-w // block) * block * 0.05 + 0.002 * w for w in GPU_WIDTHS}
    assert block_of(times) == block
    even = {w: 4.0 + 0.05 * w for w in GPU_WIDTHS}
    assert block_of(even) == 1


# --- a double of CUDA: the calls in their order, computed on the CPU ------------------------------


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
