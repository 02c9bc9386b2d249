"""Clocks, power, and throttling."""

from __future__ import annotations

import prunekit as pk
from prunekit.runtimes.nvidia import gpu
from prunekit.runtimes.tensorrt.runtime import TensorRt
from support import tensorrt_double as double
from support.tensorrt import FP32


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
