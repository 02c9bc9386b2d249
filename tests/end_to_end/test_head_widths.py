"""Narrower heads, from the command line."""

import json
import textwrap
from pathlib import Path

import pytest

import prunekit as pk
from support.commands import Says

VIT = textwrap.dedent(
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Vit(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.patch, self.qkv = nn.Conv2d(1, 64, 2, 2), nn.Linear(64, 384)
            self.project, self.head = nn.Linear(128, 64), nn.Linear(64, classes)
            self.heads = 4

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            n, t, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
            return self.head((x + self.project(mixed)).mean(1))

    def vit(num_classes=10):
        torch.manual_seed(0)
        return Vit(num_classes)
    """
)


def test_on_the_command_line(
    prunekit: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vit.py").write_text(VIT)
    model = ("vit.py:vit", "--input", "1x1x16x16", "--heads", "width")
    status, out, _ = prunekit("inspect", *model, "--json")
    assert status == 0
    groups = {group["id"]: group for group in json.loads(out)["groups"]}
    assert (groups["qkv"]["size"], groups["qkv"]["prunable"]) == (32, True)
    settings = ("--target", "fake", "--profile-nets", 4, "--target-latency", "80%", "-o", "run")
    assert prunekit("prune", *model, "--epochs", 0, "--solver", "uniform", *settings)[0] == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["widths"]["qkv"][0] == 32
    assert report["widths"]["qkv"][1] < 32
    small = pk.load("run", model="vit.py:vit")
    assert small.qkv.out_features == 12 * report["widths"]["qkv"][1]
    status, _, err = prunekit(
        *("prune", *model, "--data", "digits", "--method", "iee", "--target", "fake", "-o", "new")
    )
    assert status == 2
    assert "method iee removes whole heads only" in err
    assert not Path("new").exists()
