"""Run folders that are damaged, or start code."""

import json
from pathlib import Path

import pytest

from support.commands import ON_FAKE, SHAPE, Says
from support.refusals import Refuses, tree


def test_damaged_plan(refuses: Refuses, home: Path) -> None:
    plan = home / "run" / "plan.json"
    whole = plan.read_text()
    commands = (
        ("export", "run", "--model", "net.py:tiny", "-o", "new.onnx"),
        ("inspect", "run", *SHAPE),
    )
    for text, message in (
        (whole[:300], "run/plan.json is truncated or not JSON"),
        (whole.replace("net.py:tiny", "zoo:resnet20"), "run/plan.json was edited or damaged"),
    ):
        plan.write_text(text)
        for command in commands:
            assert message in refuses(*command)
    plan.unlink()
    assert "run is a folder without plan.json" in refuses("inspect", "run", *SHAPE)


def test_damaged_weights(refuses: Refuses, home: Path) -> None:
    weights = home / "run" / "model.safetensors"
    whole = weights.read_bytes()
    export = ("export", "run", "--model", "net.py:tiny", "-o", "new.onnx")
    for data in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(data)
        line = refuses(*export)
        assert line.startswith("run/model.safetensors was edited or damaged: its checksum does not")
    weights.unlink()
    assert "no model.safetensors in run" in refuses(*export)


def test_damaged_report(refuses: Refuses, home: Path) -> None:
    report = home / "run" / "report.json"
    whole = report.read_text()
    for text, message in (
        (whole[:300], "run/report.json is truncated or not JSON"),
        (whole.replace('"met": true', '"met": false'), "run/report.json was edited or damaged"),
    ):
        report.write_text(text)
        assert message in refuses("report", "run")
        assert message in refuses("check", "--baseline", "run/report.json")
    report.unlink()
    assert refuses("report", "run") == "run has no report.json; is the run finished?"
    assert "nowhere" in refuses("report", "nowhere")


def test_damaged_onnx(refuses: Refuses, home: Path) -> None:
    path = home / "run" / "model.onnx"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no model"):
        path.write_bytes(data)
        for target in ("fake", "onnxruntime:cpu"):
            line = refuses("bench", "run/dense.onnx", "run", "--target", target)
            assert "run/model.onnx" in line
        assert "run/model.onnx" in refuses("check", "--baseline", "run/report.json")
    path.unlink()
    assert refuses("bench", "run", "--target", "fake") == "no artifact at run/model.onnx"


def test_a_plan_may_not_start_code(refuses: Refuses, home: Path) -> None:
    import prunekit as pk
    from prunekit.support.errors import UsageError

    (home / "net.py").write_text("raise SystemExit('code has run')\n")
    with pytest.raises(UsageError, match="pass `model`"):
        pk.load("run")
    for command in (
        ("inspect", "run", *SHAPE),
        ("export", "run", "-o", "new.onnx"),
        ("bench", "run", "--target", "torch:cpu"),
    ):
        line = refuses(*command)
        assert line.startswith("run was made from 'net.py:tiny', which is code")


def test_a_base_is_for_runs(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", "--base", "net.py:tiny", *ON_FAKE, "-o", "new")
    assert line == "`base` is for a MODEL that is a run folder, and net.py:tiny is none"
    line = refuses("inspect", "run", "--base", "net.py:huge", *SHAPE)
    assert "net.py has no callable 'huge'" in line
    line = refuses("check", "--baseline", "run/report.json", "--base", "net.py:tiny")
    assert line == "--base does not go with a report, whose files say all; leave it out"


def test_resume_with_other_settings(refuses: Refuses, home: Path) -> None:
    run = json.loads((home / "run" / "report.json").read_text())["recipe"]
    flags = [
        part
        for key, value in run.items()
        if value not in (True, False, {}, [])
        for part in ("--" + key.replace("_", "-"), value)
        if key != "model"
    ]
    base = ("prune", "net.py:tiny", *flags, "-o", "run", "--resume")
    assert refuses(*base, "--seed", 5) == (
        "cannot resume run: `seed` is 5 now and was 0; use the same settings"
    )
    assert "`lr` is 0.5 now and was None" in refuses(*base, "--lr", 0.5)
    line = refuses(*base, "--overwrite")
    assert line == "--overwrite and --resume exclude each other; keep one"


def test_resume_of_a_finished_run_changes_nothing(prunekit: Says, home: Path) -> None:
    before = tree(home)
    status, out, err = prunekit("prune", "--config", "run/config.toml", "-o", "run", "--resume")
    assert status == 0
    assert "run is finished already" in err
    assert "target 65% met" in out
    assert tree(home) == before


def test_data_that_a_run_names_is_run_only_when_trusted(refuses: Refuses, home: Path) -> None:
    (home / "data.py").write_text("open('ran', 'w')\n")
    report = json.loads((home / "run" / "report.json").read_text())
    report["recipe"]["data"] = "data.py:data"
    (home / "run" / "report.json").write_text(json.dumps(report))
    line = refuses("export", "run", "--model", "net.py:tiny", "--precision", "fp16")
    assert line.startswith("run took its data from data.py:data, which is code that a file may not")
    assert "add --data data.py:data" in line
    assert not (home / "ran").exists()
