"""`prunekit prune --method iee`, interrupted and not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import prunekit as pk
from support.commands import ON_FAKE
from support.interrupting import SLOW_EPOCHS, interrupted_here

PRUNE = (
    *("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--target-latency", "65%"),
    *("--data", "digits", "--batch-size", 256, "--method", "iee", "--seed", 1),
)
"""Five steps an epoch."""
QUICK = ("--iee", "explore=2", "--iee", "improve=1", "--iee", "estimate=3", "--iee", "warmup=1")


def agrees(run):
    """The plan, the weights and the exported network are one; gives the plan."""
    from prunekit.core.artifact import Artifact
    from prunekit.core.target import Target
    from prunekit.runtimes import runtime_for

    plan, small = pk.ChannelPlan.load(run / "plan.json"), pk.load(run, "net.py:tiny").eval()
    assert not plan.is_dense
    target = Target.parse("onnxruntime:cpu")
    engine = runtime_for(target).load(Artifact.of_file(run / "model.onnx"), target)
    inputs = torch.randn(1, 1, 8, 8)
    (found,) = engine.run({"input": inputs.numpy()})
    engine.close()
    np.testing.assert_allclose(found, small(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
    report = json.loads((run / "report.json").read_text())
    widths = {group: width for group, (_, width) in report["widths"].items()}
    assert widths == {group: plan.widths[group] for group in widths}
    assert report["latency"]["met"]
    return report


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_prune_from_scratch_without_a_dense_training(prunekit, home):
    status, _, err = prunekit(*PRUNE, "--from-scratch", "--epochs", 6, *QUICK, "-o", "new")
    assert status == 0, err
    report = agrees(home / "new")
    assert report["accuracy"]["dense"] is None
    assert report["accuracy"]["pruned"] > 0.15
    assert report["training_cost"]["relative_flops"] < 1
    assert report["training_cost"]["dense_seconds"] == 0
    assert not (home / "new" / "dense.safetensors").exists()
    rows = log_of(home / "new")
    updates = [row for row in rows if row["stage"] == "update"]
    epochs = [row for row in rows if row["stage"] == "iee"]
    assert [row["step"] for row in updates] == [7, 13]  # 30 steps, half of them with updates
    assert [row["epoch"] for row in epochs] == list(range(1, 7))
    assert all(0 < row["relative_flops"] < 1 for row in updates)
    assert updates[-1]["widths"] == {g: w for g, (_, w) in report["widths"].items()}
    assert epochs[-1]["accuracy"] == pytest.approx(report["accuracy"]["pruned"], abs=0.01)


def test_prune_a_trained_network(prunekit, home):
    from prunekit.networks.build import build
    from prunekit.networks.saved import save_weights

    save_weights(build("net.py:tiny", num_classes=10, in_channels=1).module, home / "w.safetensors")
    options = ("--epochs", 3, "--iee", "omega=0.3", "--iee", "explore=4", "-o", "new")
    status, _, err = prunekit(*PRUNE, "--weights", "w.safetensors", *options)
    assert status == 0, err
    report = agrees(home / "new")
    assert report["accuracy"]["dense"] is not None
    assert report["training_cost"]["relative_flops"] <= 1
    updates = [row for row in log_of(home / "new") if row["stage"] == "update"]
    assert updates[0]["omega"] == 0.3
    assert "[iee]" in (home / "new" / "config.toml").read_text()


@pytest.mark.slow
def test_an_interrupted_prune_ends_in_the_same_plan_and_weights(prunekit, home):
    command = (*PRUNE, "--from-scratch", "--epochs", 6, *QUICK)
    assert prunekit(*command, "-o", "whole")[0] == 0
    checkpoint = home / "new" / "work" / "iee" / "checkpoint.safetensors"
    err = interrupted_here(prunekit, SLOW_EPOCHS, (*command, "-o", "new"), checkpoint.is_file)
    assert "same command with --resume" in err
    before = log_of(home / "new") if (home / "new" / "log.jsonl").exists() else []
    assert sum(row["stage"] == "iee" for row in before) < 6
    status, _, err = prunekit(*command, "--iee", "omega=0.5", "-o", "new", "--resume")
    assert status == 2
    assert "cannot resume new: `iee` is {" in err
    status, _, err = prunekit(*command, "-o", "new", "--resume")
    assert status == 0, err
    agrees(home / "new")
    for name in ("plan.json", "model.safetensors", "model.onnx"):
        assert (home / "new" / name).read_bytes() == (home / "whole" / name).read_bytes(), name
    steps = [
        [r["step"] for r in log_of(home / n) if r["stage"] == "update"] for n in ("new", "whole")
    ]
    assert steps[0] == steps[1]
