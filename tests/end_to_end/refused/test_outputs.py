"""Outputs that exist, cannot be written, or are needed."""

import os
from pathlib import Path

import pytest

from support.commands import ON_FAKE, Says
from support.refusals import PRUNE, TABLE, Refuses, tree


def test_output_exists(refuses: Refuses, home: Path) -> None:
    assert refuses(*PRUNE, "-o", "run") == (
        "output folder run exists; use --overwrite, --resume or another -o"
    )
    profile = ("profile", "net.py:tiny", *ON_FAKE)
    line = refuses(*profile, "-o", "table.json")
    assert line == "output table.json exists; use --overwrite or another -o"
    assert refuses(*profile, "-o", "run", "--overwrite") == "output run is a folder; give a file"
    export = ("export", "run", "--model", "net.py:tiny")
    assert refuses(*export) == "output run/model.onnx exists; use --overwrite or another -o"


def test_overwrite_removes_nothing_but_runs(refuses: Refuses, home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.tex").write_text("years")
    line = refuses(*PRUNE, "-o", "mine", "--overwrite")
    assert line == "mine is not a prunekit run (config.toml is missing); give another -o"
    (home / "mine" / "config.toml").write_text('title = "my site"\n')
    assert "(thesis.tex)" in refuses(*PRUNE, "-o", "mine", "--overwrite")
    line = refuses(*PRUNE, "-o", "mine", "--resume")
    assert line.startswith("no model given in mine/config.toml or the flags; ")
    (home / "mine" / "config.toml").write_bytes((home / "run" / "config.toml").read_bytes())
    line = refuses(*PRUNE, "-o", "mine", "--overwrite")
    assert line == (
        "mine holds more than a prunekit run (thesis.tex), which --overwrite would remove; "
        "give another -o"
    )


def test_what_cannot_work_is_refused_before_a_run_is_overwritten(
    refuses: Refuses, home: Path
) -> None:
    (home / "own.py").write_text(
        "from torch import nn\n"
        "def frozen(num_classes=10, in_channels=1):\n"
        "    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
        "    net[1].requires_grad_(False)\n"
        "    return net\n"
        "def alone(num_classes=10, in_channels=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    over = (*ON_FAKE, "--data", "digits", "--from-scratch", "-o", "run", "--overwrite")
    line = refuses("prune", "net.py:tiny", *over, "--method", "iee", "--iee", "omega=2")
    assert line == "`omega` must be from 0 to 1, not 2.0"
    line = refuses("prune", "own.py:frozen", *over, "--method", "halp")
    assert line.startswith("no gradient for 1.weight, which Taylor scores need: it is not trained")
    assert "has no prunable channels: it is the model's output" in refuses(
        "prune", "own.py:alone", *over
    )
    assert "`lr`" in refuses("prune", "net.py:tiny", *over, "--fine-tune-lr", "inf")
    idle = ("--method", "oneshot", "--pruning-steps", 30)
    line = refuses("prune", "net.py:tiny", *over, *idle)
    assert line.startswith("--pruning-steps is for method halp, and this is oneshot; leave it out")
    idle = ("--optimizer", "adamw", "--momentum", 0.8)
    line = refuses("prune", "net.py:tiny", *over, *idle)
    assert line == "--momentum is for sgd, and the optimizer is adamw"
    line = refuses("prune", "net.py:tiny", *over, "--method", "iee", "--fine-tune-lr", 0.1)
    assert line.startswith("--fine-tune-lr is for a network that was trained before")
    line = refuses("prune", "net.py:tiny", *over, *TABLE, "--profile-nets", 8)
    assert line.startswith("--profile-nets is for a profile, and --table needs none")


def test_overwrite_of_what_is_needed(refuses: Refuses, home: Path) -> None:
    (home / "run" / "table.json").write_bytes((home / "table.json").read_bytes())
    again = ("prune", "net.py:tiny", *ON_FAKE, "--epochs", 0, "-o", "run", "--overwrite")
    line = refuses(*again, "--table", "run/table.json")
    assert line == "`table` run/table.json lies in run, which --overwrite removes; give another -o"


def test_output_is_a_file(refuses: Refuses, home: Path) -> None:
    (home / "file").write_text("")
    assert refuses(*PRUNE, "-o", "file") == "output file is a file; give a folder"
    line = refuses(*PRUNE, "-o", "file/run")
    assert line.startswith("cannot make folder file/run: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_is_not_writable(refuses: Refuses, home: Path) -> None:
    (home / "locked").mkdir(mode=0o500)
    assert refuses(*PRUNE, "-o", "locked/run").startswith("cannot make folder locked/run: ")


def test_overwriting_keeps_what_is_there_until_the_new_run_comes_to_something(
    refuses: Refuses, prunekit: Says, home: Path
) -> None:
    before = tree(home / "run")
    again = ("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--epochs", 0, "-o", "run", "--overwrite")
    assert "is met already" in refuses(*again, "--target-latency", "100ms", work=True)
    assert tree(home / "run") == before
    assert prunekit(*again, "--target-latency", "1%")[0] == 1
    assert tree(home / "run") == before
    assert prunekit(*again, "--target-latency", "70%")[0] == 0
    assert not (home / "run" / ".replaced").exists()
    assert (home / "run" / "plan.json").is_file()


def test_a_run_is_not_pruned_into_the_run_it_was_made_from(
    refuses: Refuses, prunekit: Says, home: Path
) -> None:
    base = ("--base", "net.py:tiny", "--epochs", 0, "--profile-nets", 4)
    target = ("--target-latency", "95%")
    assert prunekit("prune", "run", *ON_FAKE, *base, *target, "-o", "second")[0] == 0
    line = refuses("prune", "second", *ON_FAKE, *base, *target, "-o", "run", "--overwrite")
    assert line == "second was made from run, which --overwrite removes; give another -o"
