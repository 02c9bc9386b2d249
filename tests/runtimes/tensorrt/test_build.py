"""Builds of engines: what they allow, their caches, interrupts, failures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunekit.runtimes.tensorrt import build as tensorrt_build
from prunekit.runtimes.tensorrt.build import Build, build_engine, cache_path
from prunekit.runtimes.tensorrt.runtime import TensorRt, place_of
from prunekit.support.errors import FileError, ModelError, RuntimeUnavailableError, UsageError
from support import tensorrt_double as double
from support.nets import image
from support.tensorrt import FP32


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
