"""What `prunekit report` prints and writes."""

import json
import re
from pathlib import Path

import pytest

from support.commands import Says


def test_report_json_has_the_contract(made: Path, prunekit: Says) -> None:
    status, out, err = prunekit("report", made / "run", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report == {
        key: value
        for key, value in json.loads((made / "run" / "report.json").read_text()).items()
        if key not in ("prunekit", "version", "sha256")
    }
    contract = {
        "model": None,
        "target": {"runtime", "device", "precision", "batch", "threads"},
        "environment": {"device_name", "runtime_version"},
        "budget": {"kind", "requested", "limit_ms"},
        "latency": {"dense_ms", "pruned_ms", "ratio", "ratio_ci", "predicted_ms", "met"},
        "accuracy": {"dense", "pruned", "metric"},
        "macs": {"dense", "pruned"},
        "params": {"dense", "pruned"},
        "training_cost": {"relative_flops", "seconds", "dense_seconds"},
        "allocation": {"solver", "gap"},
        "artifacts": {"onnx", "dense", "weights", "plan"},
        "seed": None,
    }
    for key, parts in contract.items():
        assert key in report
        assert parts is None or parts <= set(report[key]), key
    latency = report["latency"]
    assert latency["met"]
    assert latency["ratio"] == pytest.approx(latency["pruned_ms"] / latency["dense_ms"], rel=0.02)
    assert report["budget"]["limit_ms"] == pytest.approx(0.65 * latency["dense_ms"])


def test_report(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("report", "run")
    assert (status, err) == (0, "")
    assert out.startswith("# net.py:tiny")
    assert "| latency (ms) |" in out
    html = (home / "run" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"https?://", html)
