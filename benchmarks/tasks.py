"""Other tasks than classification, from scenes to the metric of the deployed file.

    python benchmarks/tasks.py
    python benchmarks/tasks.py --only "detection 50%" --epochs 12 --folder /somewhere

Each run trains the dense network on `scenes.py`'s images, prunes it to a share of its latency and
measures both files. A run whose report is there is not repeated. Results say whether anything else
ran on the machine meanwhile (`--beside`), and how long the trainings were.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scenes
from common import RESULTS, code, prunekit, save

from prunekit.core.target import cpu_environment

DETECTION = ("zoo:ssd_resnet8", "--input", "1x3x128x128", "--optimizer", "adamw", "--lr", "0.001")
SEGMENTATION = (
    *("torchvision:lraspp_mobilenet_v3_large", "--input", "1x3x128x128"),
    *("--optimizer", "adamw", "--lr", "0.001"),
)
RUNS = {
    "detection 50%": (*DETECTION, "--data", "coco:{}/coco", "--target-latency", "50%"),
    "detection 30%": (*DETECTION, "--data", "coco:{}/coco", "--target-latency", "30%"),
    "segmentation 50%": (
        *SEGMENTATION,
        "--data",
        "segmentation:{}/masks",
        "--target-latency",
        "50%",
    ),
}


def run(name: str, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """One run of `prune`, and what its report says."""
    arguments = [part.format(folder) for part in RUNS[name]]
    common = ("--from-scratch", "--epochs", str(epochs), "--batch-size", "16", "--seed", str(seed))
    output = folder / f"{name.replace(' ', '-').replace('%', '')}-{seed}"
    began = time.monotonic()
    status, report, _ = prunekit("prune", *arguments, *common, "-o", str(output), "--resume")
    if "latency" not in report:
        return {"exit": status, "error": report.get("error", "")}
    latency, accuracy = report["latency"], report["accuracy"]
    return {
        "exit": status,
        "epochs": epochs,
        "seconds": round(time.monotonic() - began),
        "ratio": latency["ratio"],
        "ratio_ci": latency["ratio_ci"],
        "probability": latency["probability"],
        "accuracy": accuracy,
        "macs": report["macs"],
        "method": report["allocation"]["method"],
    }


def main() -> None:
    """All runs, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[*RUNS], choices=[*RUNS])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "prunekit-scenes"
    )
    parser.add_argument("--train", type=int, default=4_000, help="images to train on")
    parser.add_argument("--beside", default="nothing", help="what else runs, for the record")
    asked = parser.parse_args()
    if not (asked.folder / "masks/classes.txt").is_file():
        scenes.write(asked.folder, {"train": asked.train, "val": asked.train // 8})
    path = RESULTS / "tasks.json"
    results = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    results["environment"] = asdict(cpu_environment(version("onnxruntime")))
    for name in asked.only:
        for seed in asked.seeds:
            row = run(name, asked.folder, asked.epochs, seed)
            facts = {"code": code(), "images": asked.train, "beside": asked.beside}
            results["runs"][f"{name}, seed {seed}"] = {**row, **facts}
            print(name, seed, row)
            save("tasks", results)


if __name__ == "__main__":
    main()
