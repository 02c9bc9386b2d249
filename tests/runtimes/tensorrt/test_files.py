"""Engines on disk: loaded without a build, refused elsewhere, edited."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunekit.core.artifact import Artifact
from prunekit.runtimes.sidecar import facts_path
from prunekit.runtimes.tensorrt.build import Build
from prunekit.runtimes.tensorrt.files import load_engine
from prunekit.runtimes.tensorrt.runtime import TensorRt, export_engine, place_of
from prunekit.support.errors import FileError, ModelError, RuntimeUnavailableError, UsageError
from support import TESTS
from support import tensorrt_double as double
from support.nets import image
from support.tensorrt import FP32, expected


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


def test_a_machine_that_deploys_needs_no_torch(engine, tmp_path):
    """Loads, runs and times an engine in a process where importing torch is an error."""
    program = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
for name in ("torch", "torchvision", "accelerate", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from support import tensorrt_double as double
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
