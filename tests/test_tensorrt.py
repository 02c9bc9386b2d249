"""The runtime `tensorrt` on a double of TensorRT and CUDA: our flow, not theirs.

That their names and calls exist is in test_tensorrt_contract.py; nothing here says that an engine
is fast or right on a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorrt_double as double
import torch
from core_nets import Residual, image, randomise

import prunekit as pk
from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.report import Report
from prunekit.runtimes import runtime_for
from prunekit.runtimes.nvidia import gpu
from prunekit.runtimes.onnx_graph import read
from prunekit.runtimes.sidecar import facts_path
from prunekit.runtimes.tensorrt import build as tensorrt_build
from prunekit.runtimes.tensorrt import runtime as runtime_module
from prunekit.runtimes.tensorrt.build import Build, build_engine, cache_path
from prunekit.runtimes.tensorrt.files import load_engine
from prunekit.runtimes.tensorrt.runtime import TensorRt, TrtEngine, export_engine, place_of
from prunekit.support.errors import FileError, ModelError, RuntimeUnavailableError, UsageError

FP32 = Target("tensorrt", "cuda", batch=2)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with the doubles on it, and caches of its own."""
    double.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", double.cuda_api())
    monkeypatch.setitem(sys.modules, "pynvml", double.nvml())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "_seen", {})
    monkeypatch.setattr(gpu, "_looked", {})
    folder = tmp_path / "engines"
    folder.mkdir()
    monkeypatch.setattr(runtime_module, "_folder", lambda: folder)


@pytest.fixture(scope="module")
def net():
    return randomise(Residual())


@pytest.fixture(scope="module")
def onnx(net, tmp_path_factory):
    return pk.export(net, image(), tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.fixture(scope="module")
def half(net, tmp_path_factory):
    return pk.export(net, image(), tmp_path_factory.mktemp("half") / "half.onnx", "fp16")


def expected(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_at_any_batch(net, onnx, batch):
    engine = runtime_for(FP32).load(onnx, FP32)
    x = np.random.default_rng(batch).standard_normal((batch, *image().shape[1:]), np.float32)
    (found,) = engine.run({"input": x})
    np.testing.assert_allclose(found, expected(net, x), rtol=1e-4, atol=1e-4)
    engine.close()
    assert not double.state["memory"], "buffers are left on the device"
    assert sorted(set(double.state["log"]) & {"destroy stream", "destroy graph"}) == [
        "destroy graph",
        "destroy stream",
    ]
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run({"input": x})


def test_times_are_those_between_events_around_graph_replays(onnx):
    engine = TensorRt().load(onnx, FP32)
    double.state["log"].clear()
    assert engine.time(3) == [1.5] * 3
    assert double.state["log"] == ["launch"] * 3
    cold = TensorRt(cold=True).load(onnx, FP32)
    double.state["log"].clear()
    assert cold.time(2) == [1.5] * 2
    assert double.state["log"] == ["flush 2048", "launch"] * 2


def test_what_cannot_be_captured_is_enqueued(onnx, capsys):
    double.failing["capture"] = True
    engine = TensorRt().load(onnx, FP32)
    assert engine.time(2) == [1.5] * 2
    assert "launch" not in double.state["log"]
    assert "cannot be captured as a CUDA graph" in capsys.readouterr().err


def test_a_build_is_strongly_typed_and_says_what_it_allows(onnx):
    TensorRt().load(onnx, FP32)
    TensorRt().load(onnx, replace(FP32, precision="tf32"))
    plain, tf32 = double.built
    assert plain["strong"]
    assert plain["flags"] == []
    assert tf32["flags"] == [double.BuilderFlag.TF32]
    assert plain["profile"] == {"input": [[2, *image().shape[1:]]] * 3}
    how = Build((1, 4, 8), sparse=True, workspace_mib=64)
    build_engine(onnx.path, how, place_of(FP32))
    wide = double.built[-1]
    assert wide["flags"] == [double.BuilderFlag.SPARSE_WEIGHTS]
    assert wide["pools"] == {double.MemoryPoolType.WORKSPACE: 64 * 2**20}
    assert [sizes[0] for sizes in wide["profile"]["input"]] == [1, 4, 8]


def test_an_engine_is_built_on_the_gpu_of_its_target(onnx):
    TensorRt().load(onnx, FP32)
    TensorRt().load(onnx, replace(FP32, device="cuda:1"))
    assert [build["device"] for build in double.built] == [0, 1]


def test_an_engine_is_built_once_for_a_file_and_target(onnx):
    for _ in range(3):
        TensorRt().load(onnx, FP32).close()
    assert len(double.built) == 1
    TensorRt().load(onnx, replace(FP32, batch=3))
    assert len(double.built) == 2


def test_timings_are_kept_for_each_device_and_version(onnx, monkeypatch):
    build_engine(onnx.path, Build((1, 1, 1)), place_of(FP32))
    build_engine(onnx.path, Build((1, 1, 1)), place_of(FP32))
    assert [build["cache"] for build in double.built] == ["", "timed;"]
    here = cache_path(place_of(FP32))
    assert here.read_bytes() == b"timed;timed;"
    monkeypatch.setattr(double, "__version__", "10.16.1")
    assert cache_path(place_of(FP32)) != here
    double.failing["name"] = "Another GPU"
    assert cache_path(place_of(FP32)).name == "Another_GPU-sm9.0-10.16.1.timing"


def test_timings_that_do_not_fit_are_dropped(onnx, capsys):
    build_engine(onnx.path, Build((1, 1, 1)), place_of(FP32))
    double.failing["cache"] = True
    build_engine(onnx.path, Build((1, 1, 1)), place_of(FP32))
    assert double.built[-1]["cache"] == ""
    assert "does not take the timings kept in" in capsys.readouterr().err


def test_an_interrupt_in_a_step_stops_the_build():
    class Shown:
        def advance(self, *_):
            raise KeyboardInterrupt

    monitor = tensorrt_build.progress_monitor(double, lambda title, total: Shown())
    monitor.phase_start("Building Engine", None, 2)
    assert monitor.step_complete("inner", 0)
    assert not monitor.step_complete("Building Engine", 0)
    assert monitor.interrupted
    assert not monitor.step_complete("inner", 1)


def test_an_interrupted_build_ends_as_one(onnx, monkeypatch):
    def interrupted(title, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_build, "bar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(onnx.path, Build((1, 1, 1)), place_of(FP32))


@pytest.mark.parametrize(
    ("what", "value", "kind", "text"),
    [
        ("parse", "no importer for Foo", FileError, "not a model TensorRT can read (In node 3: no"),
        ("build", "no implementation", ModelError, "TensorRT cannot build"),
        ("deserialize", "magic tag", FileError, "TensorRT cannot load"),
        ("profile", True, ModelError, "refuses the optimisation profile"),
        ("run", True, RuntimeUnavailableError, "does not run"),
        ("memory", 16, RuntimeUnavailableError, "failed: error 2"),
    ],
)
def test_failures_are_one_line(onnx, what, value, kind, text):
    double.failing[what] = value
    with pytest.raises(kind) as error:
        TensorRt().load(onnx, FP32)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert not double.state["memory"]


@pytest.mark.parametrize("given", [(0, 1, 1), (2, 1, 4), (1, 8, 4)])
def test_batches_must_rise(given):
    with pytest.raises(UsageError, match="must rise"):
        Build(given)


def test_the_files_precision_is_the_targets(onnx, half):
    fp16 = replace(FP32, precision="fp16")
    with pytest.raises(UsageError, match=r"is in fp32, .* needs one in fp16"):
        TensorRt().load(onnx, fp16)
    with pytest.raises(UsageError, match=r"is in fp16, .* needs one in fp32"):
        TensorRt().load(half, FP32)
    TensorRt().load(half, fp16).close()


def test_layer_times_carry_the_layers_names(net, onnx):
    graph = read(onnx.path)
    names = list(graph.nodes)
    fused = f"{names[0]} + {names[1]}"
    double.failing["layers"] = [(fused, 0.25), *((name, 0.5) for name in names[2:])]
    profiler = TensorRt().profiler(onnx, FP32)
    profiler.run(3)
    runs = profiler.finish()
    assert len(runs) == 2
    assert set(runs[0]) == set(graph.layers)
    assert sum(runs[0].values()) == pytest.approx(250 + 500 * (len(names) - 2))


# --- engines on disk ------------------------------------------------------------------------------


@pytest.fixture
def engine(onnx, tmp_path):
    how = Build((1, 2, 4), sparse=True)
    return export_engine(onnx, tmp_path / "net.engine", FP32, how, lambda _: 0.0)


def test_an_engine_says_what_it_is(engine, onnx):
    kept = json.loads(facts_path(engine.path).read_text())
    assert kept["device"] == "Double GPU"
    assert kept["compute_capability"] == "9.0"
    assert kept["tensorrt"] == "11.4.0"
    assert kept["driver"] == "999.1"
    assert kept["precision"] == "fp32"
    assert kept["onnx_sha256"] == onnx.sha256
    assert (kept["batches"], kept["sparse"]) == ([1, 2, 4], True)


def test_a_saved_engine_is_loaded_without_a_build(net, engine):
    builds = len(double.built)
    loaded = Artifact.of_file(engine.path)
    assert loaded.format == "tensorrt"
    found = TensorRt().load(loaded, FP32)
    x = np.ones((3, *image().shape[1:]), np.float32)
    np.testing.assert_allclose(found.run({"input": x})[0], expected(net, x), rtol=1e-4, atol=1e-4)
    assert len(double.built) == builds
    with pytest.raises(UsageError, match="takes batches of 1 to 4, not 8"):
        TensorRt().load(loaded, replace(FP32, batch=8))
    with pytest.raises(UsageError, match="computes in fp32, and target"):
        TensorRt().load(loaded, replace(FP32, precision="fp16"))


def test_an_engine_is_refused_elsewhere(engine, monkeypatch):
    loaded = Artifact.of_file(engine.path)
    double.failing["name"] = "Other GPU"
    with pytest.raises(RuntimeUnavailableError, match="for device Double GPU, and here is Other"):
        TensorRt().load(loaded, FP32)
    double.failing.clear()
    monkeypatch.setattr(double, "__version__", "10.16.1")
    with pytest.raises(RuntimeUnavailableError, match=r"for TensorRT 11\.4\.0, and here is 10"):
        TensorRt().load(loaded, FP32)


def test_an_edited_engine_is_refused(engine):
    with Path(engine.path).open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileError, match=r"is not the file that net\.engine\.json describes"):
        load_engine(engine.path, place_of(FP32))


def test_an_edited_description_is_refused(engine):
    path = facts_path(engine.path)
    path.write_text(path.read_text().replace("Double GPU", "Triple GPU"))
    with pytest.raises(FileError, match="was edited or damaged"):
        load_engine(engine.path, place_of(FP32))
    path.unlink()
    with pytest.raises(FileError, match="has no description"):
        load_engine(engine.path, place_of(FP32))


def test_an_engine_whose_outputs_are_wrong_is_not_written(onnx, tmp_path):
    def wrong(_):
        raise ModelError("differs")

    with pytest.raises(ModelError, match="differs"):
        export_engine(onnx, tmp_path / "no.engine", FP32, Build((2, 2, 2)), wrong)
    assert not list(tmp_path.glob("no.engine*"))


# --- the environment ------------------------------------------------------------------------------


def test_the_environment_has_clocks_power_and_what_held_them_back():
    double.failing["reasons"] = 1 | 4
    environment = TensorRt().environment(FP32)
    assert environment.device_name == "Double GPU"
    assert environment.driver == "999.1"
    assert environment.clocks == "SM 1000 of 1500 MHz, memory 2000 of 3000 MHz"
    assert environment.throttled == ("power limit", "temperature (hardware)")
    double.failing["reasons"] = 0
    assert TensorRt().environment(FP32).throttled == ()


def test_throttling_while_timing_is_remembered(onnx, capsys):
    engine = TensorRt().load(onnx, FP32)
    double.failing["reasons"] = 8
    gpu._looked.clear()
    engine.time(1)
    double.failing["reasons"] = 0
    assert TensorRt().environment(FP32).throttled == ("temperature (driver)",)


def test_bench_flags_a_throttled_run(onnx, capsys):
    double.failing["reasons"] = 2
    found = pk.bench([onnx, onnx], FP32, max_seconds=0.2)
    assert found.environment.throttled == ("hardware slowdown",)
    assert "the GPU held its clocks back meanwhile (hardware slowdown)" in capsys.readouterr().err


def test_why_it_is_unavailable(monkeypatch):
    assert "there is no GPU 3" in TensorRt().unavailable(Target("tensorrt", "cuda:3"))
    double.failing["driver"] = 35
    assert "CUDA finds no usable GPU (error 35)" in TensorRt().unavailable(FP32)
    double.failing.clear()
    monkeypatch.setattr(double, "__version__", "8.6.1")
    assert "TensorRT 8.6.1 is too old" in TensorRt().unavailable(FP32)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(double, "__version__", "11.0.0")
    assert "pip install cuda-bindings" in TensorRt().unavailable(FP32)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "`import tensorrt` failed" in TensorRt().unavailable(FP32)


# --- the whole way --------------------------------------------------------------------------------


def test_profile_and_prune_go_the_whole_way_on_it(home, prunekit):
    """In fp16, --gpu finds it, tables and both networks are in fp16."""
    fast = ("--nets", "4", "--rounds", "2", "--granularity", "8", "--batch", "2", "-q")
    status, out, err = prunekit(
        *("profile", "net.py:tiny", "--input", "1x1x8x8", "--gpu", "--precision", "fp16"),
        *(*fast, "-o", "gpu.json", "--json"),
    )
    assert status == 0, err
    told = json.loads(out)
    assert told["target"] == "tensorrt:cuda:fp16"
    assert told["device"] == "Double GPU"
    assert {Path(build["onnx"]).name for build in double.built} >= {"net0-lowered.onnx"}


def test_an_engine_is_exported_from_a_run(home, prunekit):
    status, out, err = prunekit(
        *("export", "run", "--format", "tensorrt", "--precision", "fp16", "--batches", "1,4,8"),
        *("--model", "net.py:tiny"),
    )
    assert status == 0, err
    assert "run/model-fp16.engine" in out
    assert (home / "run" / "model-fp16.engine.json").is_file()
    (part,) = Report.load(home / "run" / "report.json").exports
    assert (part.format, part.precision) == ("tensorrt", "fp16")
    assert part.accuracy is not None


def test_a_machine_that_deploys_needs_no_torch(engine, tmp_path):
    """Loads, runs and times an engine in a process where importing torch is an error."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(double.__file__).parent)!r})
for name in ("torch", "torchvision", "accelerate", "onnxscript"):
    sys.modules[name] = None
import numpy as np
import tensorrt_double as double
sys.modules["tensorrt"] = double
sys.modules["cuda.bindings.runtime"] = double.cuda_api()
sys.modules["pynvml"] = double.nvml()
from prunekit.core.artifact import Artifact
from prunekit.runtimes import runtime_for
from prunekit.core.target import Target
target = Target.parse("tensorrt", batch=2)
engine = runtime_for(target).load(Artifact.of_file({engine.path!r}), target)
x = np.ones((2, *{tuple(image().shape[1:])!r}), np.float32)
print(engine.run({{"input": x}})[0].shape[0], engine.time(2))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2"


def test_the_engine_class_is_an_engine(onnx):
    assert isinstance(TensorRt().load(onnx, FP32), TrtEngine)
