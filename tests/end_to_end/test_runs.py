"""What a run is good for: its files agree, it is pruned again, exported, timed."""

import json
from pathlib import Path

import numpy as np
import pytest

import prunekit as pk
from support.commands import ON_FAKE, SHAPE, Says, onnx_outputs


def test_a_real_run(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit(
        *("prune", "net.py:medium", *SHAPE, "--data", "digits", "--from-scratch"),
        *("--dense-epochs", 1, "--epochs", 1, "--target-latency", "90%", "--profile-seconds", 1),
        *("--measure-seconds", 0.3),
        *("--profile-nets", 4, "--target", "onnxruntime:cpu", "--json", "-o", "real"),
    )
    report = json.loads(out)
    outcome = pk.Report.load(home / "real/report.json").latency.outcome  # as the machine lets it be
    assert status == {"met": 0, "missed": 1, "open": 3}[outcome]
    target = report["target"]
    assert (target["runtime"], target["device"], target["threads"]) == ("onnxruntime", "cpu", 1)
    assert report["macs"]["pruned"] < report["macs"]["dense"]
    assert 0 <= report["accuracy"]["pruned"] <= 1


def test_run_onnx_and_report_agree(made: Path) -> None:
    import torch

    from prunekit.train import load_data

    run = made / "run"
    data = load_data("digits", (1, 8, 8), 0)
    pairs = [data.val[i] for i in range(len(data.val))]  # type: ignore[arg-type]
    images = torch.stack([image for image, _ in pairs])
    labels = np.array([label for _, label in pairs])
    small = pk.load(run, f"{made / 'net.py'}:tiny")
    assert not small.training
    with torch.no_grad():
        expected = small(images).numpy()
    found = onnx_outputs(run / "model.onnx", images.numpy())
    assert np.abs(found - expected).max() <= 1e-4
    report = pk.Report.load(run / "report.json")
    assert report.accuracy.pruned == pytest.approx((found.argmax(1) == labels).mean())
    dense = onnx_outputs(run / "dense.onnx", images.numpy())
    assert report.accuracy.dense == pytest.approx((dense.argmax(1) == labels).mean())
    assert sum(p.numel() for p in small.parameters()) == report.params.pruned


def test_prune_a_run_again(prunekit: Says, home: Path) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build

    dense = build("zoo:resnet8").module
    graph = pk.trace(dense, torch.zeros(1, 3, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {graph.groups[0].id: 8})
    pk.save("one", pk.slim(dense, plan), plan, base="zoo:resnet8")
    settings = ("--epochs", 0, "--profile-nets", 4, "--target-latency", "80%", "-o", "two")
    model = ("--input", "1x3x8x8", "--target", "fake")
    assert prunekit("prune", "one", *model, *settings)[0] == 0
    sizes = [sum(p.numel() for p in pk.load(run).parameters()) for run in ("one", "two")]
    assert sizes[1] < sizes[0]


def test_runs_of_the_users_own_code_go_on_with_it(prunekit: Says, home: Path) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build

    dense = build("net.py:medium", in_channels=1).module
    graph = pk.trace(dense, torch.zeros(1, 1, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {graph.groups[0].id: 48})
    one = pk.slim(dense, plan)
    shape = (1, 1, 8, 8)
    pk.save("one", one, plan, "net.py:medium", {"in_channels": 1}, (shape,))

    base = ("--base", "net.py:medium")
    settings = ("--epochs", 0, "--profile-nets", 4, "--target-latency", "80%", "-o", "two")
    assert prunekit("prune", "one", *base, *ON_FAKE, *settings)[0] == 0
    assert prunekit("prune", "one", *base, *ON_FAKE, *settings, "--resume")[0] == 0
    two = sum(p.numel() for p in pk.load("two", "net.py:medium").parameters())
    assert two < sum(p.numel() for p in one.parameters())
    assert prunekit("export", "two", *base, "-o", "two.onnx")[0] == 0
    assert prunekit("export", "one", *base, "-o", "one.onnx")[0] == 0  # of `save`, with no report
    status, out, _ = prunekit("inspect", "two", *base, *SHAPE, "--json")
    assert status == 0
    assert json.loads(out)["params"] == two
    table = ("--table", "two/table.json", "--points", 3)
    assert prunekit("sweep", "one", *base, *ON_FAKE, *table)[0] == 0
    nets = ("--nets", 4, "--rounds", 2, "-o", "t.json")
    assert prunekit("profile", "two", *base, *ON_FAKE, *nets)[0] == 0
    half = ("--sparsity", "50%", "--method", "static", "-o", "sparse")
    assert prunekit("sparsify", "one", *base, *ON_FAKE, *half)[0] == 0
    live = ("--target", "torch:cpu", "--max-seconds", 0.2)
    status, out, _ = prunekit("bench", "one", "two", *base, *live, "--json")
    assert status == 0
    assert [a["path"] for a in json.loads(out)["artifacts"]] == ["one", "two"]
    assert prunekit("check", "one", "--baseline", "one", *base, *live)[0] in (0, 3)


def test_halp_masks_an_embedding_behind_a_layer_norm_step_after_step(
    prunekit: Says, home: Path
) -> None:
    (home / "own.py").write_text(
        "from torch import nn\n"
        "class Mixer(nn.Module):\n"
        "    def __init__(self, num_classes=10, in_channels=1):\n"
        "        super().__init__()\n"
        "        self.embed = nn.Linear(64, 128)\n"
        "        self.norm, self.last = nn.LayerNorm(128), nn.LayerNorm(128)\n"
        "        self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)\n"
        "        self.head = nn.Linear(128, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = self.embed(x.flatten(1))\n"
        "        x = x + self.down(self.up(self.norm(x)).relu())\n"
        "        return self.head(self.last(x))\n"
    )
    command = ("prune", "own.py:Mixer", *ON_FAKE, "--data", "digits", "--from-scratch")
    settings = ("--method", "halp", "--epochs", 3, "--dense-epochs", 1, "--profile-nets", 4)
    target = ("--target-latency", "70%", "--granularity", 8, "-o", "mixer", "--json")
    status, out, _ = prunekit(*command, *settings, *target)
    assert status == 0
    embed = json.loads(out)["groups"]["embed"]
    assert embed["after"] < embed["before"] == 128
