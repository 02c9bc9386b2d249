"""What `prunekit inspect` shows of a model and of a run."""

import json
from pathlib import Path

import torch

from support.commands import SHAPE, Says


def test_inspect(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("inspect", "net.py:tiny", *SHAPE, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(g["size"], g["prunable"]) for g in found["groups"]] == [
        (32, True),
        (32, True),
        (10, False),
    ]
    assert found["groups"][-1]["reason"] == "it is the model's output"
    assert len(found["layers"]) == 3
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    status, out, _ = prunekit("inspect", "net.py:tiny", *SHAPE, "-v")
    assert status == 0
    assert "MMACs in 3 layers" in out


def test_a_run_is_looked_at_with_its_own_input(prunekit: Says, home: Path) -> None:
    import prunekit as pk
    from prunekit import zoo

    model, shape = zoo.build("resnet8"), (1, 3, 16, 16)
    plan = pk.ChannelPlan.random(pk.trace(model, torch.randn(shape)), 0.5, seed=1)
    pk.save("half", pk.slim(model, plan), plan, "zoo:resnet8", input_shapes=(shape,))
    status, out, _ = prunekit("inspect", "half", "--json")
    assert (status, json.loads(out)["input"]) == (0, "1x3x16x16")
    assert "at 1x3x16x16: " in prunekit("inspect", "half")[1]
    assert (
        json.loads(prunekit("inspect", "half", "--input", "1x3x8x8", "--json")[1])["macs"]
        < (json.loads(out)["macs"])
    )
    status, out, _ = prunekit("profile", "half", "--target", "fake", "--nets", 4, "-o", "t.json")
    assert status == 0
    status, _, err = prunekit("export", "half", "--input", "1x3x8x8")
    assert status == 2
    assert "half was made for inputs of 1x3x16x16, and its files are for those; for a file " in err
    assert prunekit("export", "half", "--input", "4x3x16x16")[0] == 0
    assert prunekit("export", "half", "--input", "1x3x8x8", "-o", "small.onnx")[0] == 0


def test_inspect_a_run(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit("inspect", "zoo:resnet8", "--input", "1x3x8x8", "--json")
    assert status == 0
    assert json.loads(out)["prunable_macs_share"] > 0.9
