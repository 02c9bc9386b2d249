"""`prunekit check` on an unchanged artifact and on one that is 15 % slower, ten times each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from common import prunekit, save
from torch import nn

import prunekit as pk

TIMES = 10
SLOWER = 1.15


def network(width: int) -> nn.Module:
    """Three convolutions between a fixed stem and head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main() -> None:
    """Find the width that costs 15 % more, then check ten times each."""
    example = torch.randn(1, 3, 28, 28)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = pk.export(network(320), example, folder / "base.onnx")
        same = Path(shutil.copy(base.path, folder / "same.onnx"))
        tried = {}
        for width in (352, 368, 384):
            artifact = pk.export(network(width), example, folder / f"wide{width}.onnx")
            tried[width] = pk.bench([base, artifact], "onnxruntime:cpu", max_seconds=8).ratio
        width = min(tried, key=lambda w: abs(tried[w] - SLOWER))
        rows = []
        for case, path in (("unchanged", same), ("slower", folder / f"wide{width}.onnx")):
            for _ in range(TIMES):
                status, found, seconds = prunekit("check", str(path), "--baseline", base.path)
                rows.append({"case": case, "exit_status": status, "seconds": seconds, **found})
                print(f"{case}: exit {status}, {found['reason']} ({seconds:.1f} s)")
    environment = prunekit("targets")[1]["targets"]
    save(
        "check_gate",
        {
            "environment": next(t for t in environment if t["target"] == "onnxruntime:cpu"),
            "slower_width": width,
            "slower_ratio": tried[width],
            "passes_unchanged": sum(r["exit_status"] == 0 for r in rows[:TIMES]),
            "fails_slower": sum(r["exit_status"] == 1 for r in rows[TIMES:]),
            "inconclusive": sum(r["exit_status"] == 3 for r in rows),
            "checks": rows,
        },
    )


if __name__ == "__main__":
    main()
