"""What `prunekit bench` says."""

import json
from pathlib import Path

import pytest

from support.commands import Says


def test_bench(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit(
        *("bench", "run/dense.onnx", "run/model.onnx", "run", "--target", "fake", "--json")
    )
    assert status == 0
    first, second, third = json.loads(out)["artifacts"]
    assert first["ratio"] is None
    assert second["ratio_ci"][0] <= second["ratio"] <= second["ratio_ci"][1] < 1
    assert third["path"] == "run"
    assert third["ratio"] == pytest.approx(second["ratio"], abs=0.02)
    status, out, _ = prunekit("bench", "run/model.onnx", "--target", "fake")
    assert status == 0
    assert "median" in out
