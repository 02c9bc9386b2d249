"""Tables of something else, and damaged ones."""

from pathlib import Path

import pytest

from support.commands import ON_FAKE, SHAPE
from support.refusals import PRUNE, TABLE, Refuses


def test_table_of_something_else(refuses: Refuses, home: Path) -> None:
    other = "the latency table is for fake:cpu fp32, batch 1, 1 thread, not "
    base = ("prune", "net.py:tiny", *TABLE, "--epochs", 0, "-o", "new")
    line = refuses(*base, *SHAPE, "--target", "onnxruntime:cpu")
    assert line.startswith(f"{other}onnxruntime:cpu fp32, batch 1, 1 thread; run `prunekit prof")
    line = refuses(*base, *SHAPE, "--target", "fake", "--threads", 2)
    assert line.startswith(f"{other}fake:cpu fp32, batch 1, 2 threads; ")
    line = refuses(*base, "--input", "4x1x8x8", "--target", "fake")
    assert line.startswith(f"{other}fake:cpu fp32, batch 4, 1 thread; ")
    line = refuses("prune", "net.py:wide", *ON_FAKE, *TABLE, "--epochs", 0, "-o", "new")
    assert line.startswith("no timing for layer '0' (conv 5x5 8x8->4x4")
    assert line.endswith("run `prunekit profile` for this model and input")


def test_table_of_another_device(
    refuses: Refuses, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.core.target import Environment
    from prunekit.runtimes.fake import Fake

    there = Environment(device_name="another device", runtime_version="1")
    monkeypatch.setattr(Fake, "environment", lambda self, target: there)
    line = refuses(*PRUNE, "-o", "new")
    assert line.startswith("the latency table was measured elsewhere: device name 'fake device'")
    assert line.endswith(
        "against 'another device' here; run `prunekit profile` on this device, with --transfer "
        "TABLE if it is of the same kind"
    )


def test_damaged_table(refuses: Refuses, home: Path) -> None:
    table = home / "table.json"
    whole = table.read_text()
    commands = (("table", "show", "table.json"), (*PRUNE, "-o", "new"))
    for text, message in (
        (whole[:500], "table.json is truncated or not JSON"),
        ("", "table.json is truncated or not JSON"),
        (whole.replace('"us": ', '"us": 1', 1), "table.json was edited or damaged: its checksum"),
        (whole.replace("latency table", "plan", 1), "table.json is not a prunekit latency table"),
        (whole.replace('"version": 1', '"version": 99', 1), "table.json has latency table version"),
        ("[]", "table.json is not a prunekit latency table file"),
    ):
        table.write_text(text)
        for command in commands:
            assert message in refuses(*command)
    table.unlink()
    for command in commands:
        assert "cannot read latency table table.json: No such file" in refuses(*command)
