"""Networks that lose whole blocks, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import prunekit as pk
from support.commands import ON_FAKE, Says

ZEROS = torch.zeros(1, 3, 16, 16)


def test_prune_with_depth(prunekit: Says, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = ("--input", "1x3x8x8", *ON_FAKE[2:])
    command = ("prune", "zoo:resnet8", *shape, "--epochs", 0, "--depth", "--profile-nets", 6)
    status, out, err = prunekit(*command, "--target-latency", "45%", "--json", "-o", "run")
    assert status == 0, err
    report = json.loads(out)
    gone = [group for group, (_, after) in report["widths"].items() if after == 0]
    plan = pk.ChannelPlan.load(tmp_path / "run" / "plan.json")
    assert len(plan.removed) == len(gone) > 0
    model = pk.load(tmp_path / "run")
    assert torch.isfinite(model(ZEROS)).all()
    assert prunekit("report", "run")[0] == 0
    trained = ("--method", "iee", "--data", "digits", "--epochs", 3)
    status, _, err = prunekit(*command, *trained, "-o", "new")
    assert status == 2
    assert "--depth is for method oneshot, and this is iee" in err
