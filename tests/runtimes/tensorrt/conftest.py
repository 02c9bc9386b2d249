"""A machine with doubles of TensorRT and CUDA, and caches of its own."""

from __future__ import annotations

import sys

import pytest

import prunekit as pk
from prunekit.runtimes.nvidia import gpu
from prunekit.runtimes.tensorrt import runtime as runtime_module
from prunekit.runtimes.tensorrt.build import Build
from prunekit.runtimes.tensorrt.runtime import export_engine
from support import tensorrt_double as double
from support.nets import Residual, image, randomise
from support.tensorrt import FP32


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


@pytest.fixture
def engine(onnx, tmp_path):
    how = Build((1, 2, 4), sparse=True)
    return export_engine(onnx, tmp_path / "net.engine", FP32, how, lambda _: 0.0)
