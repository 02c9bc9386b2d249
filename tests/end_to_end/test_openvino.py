"""OpenVINO from a profile to a report, and its files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.openvino import BF16, needs_bf16

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")


def test_a_run_from_profile_to_report(home, prunekit):
    on = ("--input", "1x1x8x8", "--target", "openvino:cpu")
    nets = ("--nets", "4", "--rounds", "2", "--granularity", "16", "-o", "ov.json")
    status, _, err = prunekit("profile", "net.py:medium", *on, *nets)
    assert status == 0, err
    data = ("--data", "digits", "--epochs", "0", "--from-scratch", "--method", "oneshot")
    target = ("--table", "ov.json", "--target-latency", "70%", "--measure-seconds", "0.3")
    status, _, err = prunekit("prune", "net.py:medium", *on, *data, *target, "-o", "ov")
    assert status in (0, 1, 3), err  # as the machine lets it be
    report = json.loads((home / "ov" / "report.json").read_text())
    assert report["target"]["runtime"] == "openvino"
    assert report["environment"]["runtime_version"].startswith("openvino ")
    status, out, err = prunekit(
        *("bench", "ov/dense.onnx", "ov", "--target", "openvino:cpu", "--json"),
        *("--max-seconds", "0.5"),
    )
    assert status == 0, err
    assert [row["samples"] > 0 for row in json.loads(out)["artifacts"]] == [True, True]


def test_accuracy_is_that_of_the_precision_deployed(home):
    needs_bf16()
    from prunekit.pipeline.accuracy import file_accuracy
    from prunekit.train import load_data

    data = load_data("digits", (1, 8, 8))
    found = file_accuracy(home / "run" / "model.onnx", data, target=BF16)
    assert found == pytest.approx(file_accuracy(home / "run" / "model.onnx", data), abs=0.05)


def test_ir_on_the_command_line(home, prunekit):
    export = ("export", "run", "--model", "net.py:tiny", "--format", "openvino")
    status, out, err = prunekit(*export, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["path"], told["format"]) == (str(Path("run", "model.xml")), "openvino")
    assert told["accuracy"] is not None, "measured on the run's data"
    status, _, err = prunekit(*export)
    assert status == 2
    assert "model.xml exists; use --overwrite" in err
    status, _, err = prunekit(*export, "-o", "new.bin")
    assert status == 2
    on = ("--target", "openvino:cpu", "--max-seconds", "0.3")
    status, _, err = prunekit("bench", "run/model.onnx", "run/model.xml", *on)
    assert status == 0, err
    status, _, err = prunekit("bench", "run/model.xml", "--max-seconds", "0.3")
    assert status == 2
    assert "onnxruntime:cpu takes artifacts of format onnx, not openvino" in err
