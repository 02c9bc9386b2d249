"""What `prunekit check` decides."""

import json
from pathlib import Path

from support.commands import Says, python


def test_check(prunekit: Says, home: Path) -> None:
    fake = ("--target", "fake")
    dense, model = "run/dense.onnx", "run/model.onnx"
    assert prunekit("check", model, "--baseline", model, *fake)[0] == 0
    status, out, _ = prunekit("check", model, "--baseline", dense, *fake)
    assert status == 0
    assert out.startswith("pass: ")
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, "--json")
    assert status == 1
    verdict = json.loads(out)
    assert verdict["outcome"] == "fail"
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, "--threshold", "99%")
    assert status == 0
    assert "below 1.99" in out
    exact = verdict["ratio"] - 1
    limits = ("--threshold", exact, "--confidence", 0.9999, "--max-seconds", 0.2)
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, *limits)
    assert status == 3
    assert out.startswith("inconclusive: ")


def test_files_are_timed_and_reports_shown_without_torch(home: Path) -> None:
    dense, model, fake = "run/dense.onnx", "run/model.onnx", ("--target", "fake")
    check = ["check", model, "--baseline", dense, *fake]
    commands = [["report", "run"], ["bench", dense, model, *fake], check]
    code = f"""
import sys
sys.modules["torch"] = None
from prunekit.cli.main import run
print([run(command) for command in {commands}])
"""
    assert python(code).endswith("[0, 0, 0]")


def test_check_against_a_report(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit("check", "--baseline", "run/report.json")
    assert status == 0
    assert "recorded ratio" in out
    assert prunekit("check", "run/dense.onnx", "--baseline", "run/report.json")[0] == 1
    larger = ("export", "run", "--base", "net.py:tiny", "--input", "1x1x12x12", "-o", "large.onnx")
    assert prunekit(*larger)[0] == 0
    status, _, err = prunekit("check", "large.onnx", "--baseline", "run/report.json")
    assert status == 2
    assert "large.onnx takes inputs of 1x12x12, and run/dense.onnx of 1x8x8; export both" in err
    status, _, err = prunekit("check", "large.onnx", "--baseline", "run/dense.onnx")
    assert status == 2
    assert "large.onnx takes inputs of 1x12x12, and run/dense.onnx of 1x8x8" in err
    status, _, err = prunekit("bench", "run/dense.onnx", "large.onnx", "--max-seconds", "0.5")
    assert status == 0
    assert "of 1x8x8; their ratio is of different work" in err
