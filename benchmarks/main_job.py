"""The main job on the models of the README, as a user runs it, with what came out measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import prunekit, save

ONESHOT = ("--criterion", "magnitude", "--method", "oneshot", "--epochs", "0")
JOBS = {
    "digits": (
        "zoo:resnet20_w32", "--data", "digits", "--input", "1x3x16x16", "--from-scratch",
        "--target-latency", "50%",
    ),
    "resnet50": (
        "torchvision:resnet50", "--input", "1x3x224x224", *ONESHOT, "--target-latency", "50%",
    ),
    "mobilenet_v2": (
        "torchvision:mobilenet_v2", "--input", "1x3x224x224", *ONESHOT, "--target-latency", "60%",
    ),
}  # fmt: skip
KEPT = ("latency", "accuracy", "macs", "params", "training_cost", "allocation", "table", "landing")


def main() -> None:
    """Run every job in a fresh folder."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in JOBS.items():
            output = str(Path(folder) / name)
            status, report, seconds = prunekit("prune", *arguments, "-o", output)
            rows[name] = {
                "command": f"prunekit prune {' '.join(arguments)}",
                "exit_status": status,
                "seconds": round(seconds, 1),
                "environment": report["environment"],
                "target": report["target"],
                **{key: report[key] for key in KEPT},
            }
            latency, accuracy = report["latency"], report["accuracy"]
            print(
                f"{name}: exit {status}, {seconds:.0f} s, measured {latency['ratio']:.3f} "
                f"[{latency['ratio_ci'][0]:.3f}, {latency['ratio_ci'][1]:.3f}], "
                f"met {latency['met']}, accuracy {accuracy['dense']} -> {accuracy['pruned']}, "
                f"table error {report['table']['mape']:.3f}"
            )
    save("main_job", rows)


if __name__ == "__main__":
    main()
