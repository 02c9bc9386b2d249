"""Methods at the same asked latency on digits: accuracy and seconds over three seeds."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from common import prunekit, save

SEEDS = (0, 1, 2)
BASE = ("zoo:resnet20_w32", "--data", "digits", "--input", "1x3x16x16")
CASES = [
    (method, criterion, solver)
    for method, solver in (("oneshot", "joint"), ("halp", "joint"))
    for criterion in ("taylor",)
]


def main() -> None:
    """One dense network per seed, shared by all cases of the seed."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in SEEDS:
            first = folder / f"dense{seed}"
            _, dense, _ = prunekit(
                "prune", *BASE, "--from-scratch", "--method", "oneshot", "--epochs", "1",
                "--dense-epochs", "15", "--seed", str(seed), "--target-latency", "90%",
                "-o", str(first),
            )  # fmt: skip
            for method, criterion, solver in CASES:
                _, report, seconds = prunekit(
                    "prune", *BASE, "--weights", str(first / "dense.safetensors"),
                    "--table", str(first / "table.json"), "--method", method,
                    "--criterion", criterion, "--solver", solver, "--epochs", "15",
                    "--seed", str(seed), "--target-latency", "30%",
                    "-o", str(folder / f"{seed}-{method}-{criterion}-{solver}"),
                )  # fmt: skip
                rows.append(
                    {
                        "method": method,
                        "criterion": criterion,
                        "solver": solver,
                        "seed": seed,
                        "dense": dense["accuracy"]["dense"],
                        "accuracy": report["accuracy"]["pruned"],
                        "ratio": report["latency"]["ratio"],
                        "seconds": round(seconds, 1),
                        "environment": report["environment"],
                    }
                )
                print(method, criterion, solver, seed, rows[-1]["accuracy"], rows[-1]["ratio"])
    for case in CASES:
        mine = [r for r in rows if (r["method"], r["criterion"], r["solver"]) == case]
        values = [r["accuracy"] for r in mine]
        ratio = statistics.mean(r["ratio"] for r in mine)
        print(
            f"{' '.join(case)}: {100 * statistics.mean(values):.2f} "
            f"+- {100 * statistics.stdev(values):.2f} at ratio {ratio:.3f}"
        )
    save("methods", rows)


if __name__ == "__main__":
    main()
