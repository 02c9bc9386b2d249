"""Commands on the double of TensorRT."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit.report import Report
from support import tensorrt_double as double


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
