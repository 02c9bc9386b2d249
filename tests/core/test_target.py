"""Targets as people write them, and when two environments' timings can be compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.core import target as target_module
from prunekit.core.target import (
    DEVICES,
    PRECISIONS,
    Environment,
    Target,
    cpu_environment,
    cpu_isa,
    package_version,
    usable_cores,
)
from prunekit.support.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected", "written"),
    [
        ("onnxruntime:cpu", Target("onnxruntime"), "onnxruntime:cpu"),
        ("onnxruntime", Target("onnxruntime"), "onnxruntime:cpu"),
        (" ONNXRuntime:CPU ", Target("onnxruntime"), "onnxruntime:cpu"),
        ("tensorrt", Target("tensorrt", "cuda"), "tensorrt:cuda"),
        ("tensorrt:fp16", Target("tensorrt", "cuda", "fp16"), "tensorrt:cuda:fp16"),
        ("torch:cuda:fp16", Target("torch", "cuda", "fp16"), "torch:cuda:fp16"),
        ("torch:cuda:1", Target("torch", "cuda:1"), "torch:cuda:1"),
        ("torch:cuda:1:bf16", Target("torch", "cuda:1", "bf16"), "torch:cuda:1:bf16"),
        ("fake", Target("fake"), "fake:cpu"),
    ],
)
def test_what_is_read(text, expected, written):
    assert Target.parse(text) == expected
    assert str(expected) == written
    assert Target.parse(written) == expected


@pytest.mark.parametrize(
    "text", ["torch:tpu", "torch:cpu:1", "torch:cuda:1:2", "torch:", "torch:1"]
)
def test_unknown_parts_list_the_known(text):
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    message = str(caught.value)
    assert f"in target {text!r}" in message
    assert all(name in message for name in (*DEVICES, *PRECISIONS))


def test_other_refusals():
    with pytest.raises(UsageError, match="empty target ' '; write for example onnxruntime:cpu"):
        Target.parse(" ")
    with pytest.raises(UsageError, match="batch and threads must be at least 1, not 0 and 2"):
        Target.parse("fake", batch=0, threads=2)


def test_in_words():
    assert Target("fake").describe() == "fake:cpu fp32, batch 1, 1 thread"
    target = Target.parse("tensorrt:int8", batch=8, threads=4)
    assert target.describe() == "tensorrt:cuda:int8 int8, batch 8, 4 threads"


@settings(derandomize=True)
@given(
    st.sampled_from(["torch", "fake", "tensorrt"]),
    st.sampled_from(["cpu", "cuda", "cuda:3"]),
    st.sampled_from(PRECISIONS),
)
def test_round_trip(runtime, device, precision):
    target = Target(runtime, device, precision)
    assert Target.parse(str(target)) == target


def test_environments_differ_in_what_changes_timings():
    here = Environment("CPU a", "1.20", "", isa=("avx2", "avx512f"), created="2025", os="Linux 5")
    assert here.difference(replace(here, created="2026", os="Linux 6", python="3.12")) is None
    assert (
        here.difference(replace(here, device_name="CPU b")) == "device name 'CPU a' against 'CPU b'"
    )
    assert "runtime version '1.20' against '1.21'" in here.difference(
        replace(here, runtime_version="1.21")
    )
    assert "driver '' against '550'" in here.difference(replace(here, driver="550"))
    assert here.difference(replace(here, isa=("avx2",))) == "isa 'avx2 avx512f' against 'avx2'"


def test_this_machine():
    found = cpu_environment("1.0", {"numpy": "2"})
    assert found.device_name
    assert found.cores == usable_cores() >= 1
    assert found.isa == cpu_isa()
    assert found.difference(cpu_environment("1.0")) is None
    assert "  " not in found.device_name


def test_a_machine_without_cpuinfo(monkeypatch):
    monkeypatch.setattr(target_module, "_cpuinfo", dict)
    assert cpu_isa() == ()
    assert cpu_environment("1").device_name or True


def test_versions_of_packages(monkeypatch):
    """Such as onnxruntime, when the distribution installed is onnxruntime-gpu."""
    assert package_version("numpy") == version("numpy")
    assert package_version("no-such-package") == "unknown"
    monkeypatch.setitem(sys.modules, "module_of_another", SimpleNamespace(__version__="1.2"))
    assert package_version("module_of_another") == "1.2"
