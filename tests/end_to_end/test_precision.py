"""Runs and exports in fp16 and int8."""

from __future__ import annotations

import json

import onnx
import pytest

from prunekit.report import Report
from prunekit.runtimes.onnx_graph import precision_of

MODEL = ("--model", "net.py:tiny")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_export_has_its_accuracy_in_the_report(home, prunekit, precision):
    status, out, err = prunekit("export", "run", "--precision", precision, *MODEL, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["path"] == f"run/model-{precision}.onnx"
    report = Report.load(home / "run" / "report.json")
    (part,) = report.exports
    assert part.model_dump() == told
    assert abs(part.accuracy - report.accuracy.pruned) < 0.05
    page = (home / "run" / "report.html").read_text()
    assert f"model-{precision}.onnx" in page
    assert f"{part.accuracy:.2%}" in page
    status, out, _ = prunekit("report", "run")
    assert f"| model-{precision}.onnx | onnx | {precision} |" in out
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL)
    assert status == 2
    assert "exists; use --overwrite" in err
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL, "--overwrite")
    assert status == 0, err
    again = ("-o", f"run/../run/model-{precision}.onnx", "--overwrite")
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL, *again)
    assert status == 0, err
    assert len(Report.load(home / "run" / "report.json").exports) == 1  # one file, named anew


def test_a_run_on_an_int8_target_is_int8_throughout(home, prunekit):
    status, out, err = prunekit(
        *(
            "prune",
            "net.py:tiny",
            "--input",
            "1x1x8x8",
            "--target",
            "fake:int8",
            "--data",
            "digits",
        ),
        *("--epochs", "0", "--profile-nets", "4", "--target-latency", "85%", "-o", "new", "--json"),
    )
    assert status == 0, err
    report = json.loads(out)
    for name in ("dense.onnx", "model.onnx"):
        assert precision_of(onnx.load(home / "new" / name)) == "int8"
    assert report["target"]["precision"] == "int8"
    assert report["accuracy"]["pruned"] is not None


def test_a_run_is_overwritten_with_what_was_exported_from_it(home, prunekit):
    assert prunekit("export", "run", "--precision", "fp16", *MODEL, "-q")[0] == 0
    given = ("prune", "net.py:tiny", "--input", "1x1x8x8", "--target", "fake", "--epochs", "0")
    more = ("--table", "table.json", "--target-latency", "85%", "--overwrite", "-o", "run", "-q")
    status, _, err = prunekit(*given, *more)
    assert status == 0, err
    assert not (home / "run" / "model-fp16.onnx").exists()


def test_a_run_on_an_fp16_target_is_fp16_throughout(home, prunekit):
    status, _, err = prunekit(
        *("prune", "net.py:tiny", "--input", "1x1x8x8", "--target", "fake:fp16", "--epochs", "0"),
        *("--profile-nets", "4", "--target-latency", "85%", "-o", "new", "--json"),
    )
    assert status == 0, err
    for name in ("dense.onnx", "model.onnx"):
        assert precision_of(onnx.load(home / "new" / name)) == "fp16"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--precision", "int4"), "onnx files are written in fp16, fp32, int8, not int4"),
        (
            ("--format", "openvino", "--precision", "int8"),
            "openvino files are written in fp32, not",
        ),
        (("--format", "gguf"), "unknown format 'gguf'; this version exports onnx, openvino, "),
        (("--for", "tflite"), "--for is onnxruntime or tensorrt, not 'tflite'"),
        (("--batches", "8,1"), "cannot read --batches '8,1'; write MIN,OPT,MAX such as 1,8,32"),
        (("--batches", "4,2,1"), "cannot read --batches '4,2,1'"),
        (("--batches", "4"), "--batches is for engines, and this is onnx; leave it out"),
        (("--sparse",), "--sparse is for engines, and this is onnx; leave it out"),
        (("--for", "tensorrt"), "--for is for int8 ONNX files, and this is onnx; leave it out"),
        (("--device", "cuda"), "--device is for packages, and this is onnx; leave it out"),
    ],
)
def test_wrong_export_flags(home, prunekit, arguments, line):
    status, out, err = prunekit("export", "run", *MODEL, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"prunekit: {line}")
    assert err.count("\n") == 1


def test_int8_of_a_bare_model_needs_data(home, prunekit):
    given = ("export", "net.py:tiny", "--input", "1x1x8x8", "--precision", "int8")
    status, _, err = prunekit(*given)
    assert status == 2
    assert err == (
        "prunekit: int8 needs data for its ranges; add --data (digits, imagefolder:PATH)\n"
    )
    status, _, err = prunekit(*given, "--data", "digits")
    assert status == 0, err
    assert (home / "tiny-int8.onnx").is_file()
