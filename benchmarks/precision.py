"""What fewer bits cost: files in fp16 and int8 of a pruned network, and a run in int8 throughout.

    python benchmarks/precision.py

On scikit-learn's digits, five minutes on two cores. Accuracies are those of the exported files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import prunekit, save

NET = ("zoo:resnet20_w32", "--data", "digits", "--input", "1x3x16x16", "--from-scratch")
EPOCHS = ("--dense-epochs", "5", "--epochs", "3", "--target-latency", "60%")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        status, report, _ = prunekit("prune", *NET, *EPOCHS, "-o", str(run))
        print(f"fp32: exit {status}, accuracy {report['accuracy']['pruned']:.4f}")
        files = [one(run, precision) for precision in ("fp16", "int8")]
        where = ("--target", "onnxruntime:cpu:int8", "-o", str(Path(folder) / "int8"))
        status, low, _ = prunekit("prune", *NET, *EPOCHS, *where)
        print(f"int8 target: exit {status}, ratio {low['latency']['ratio']:.3f}")
    save(
        "precision",
        {
            "environment": low["environment"],
            "versions": low["versions"],
            "fp32": {k: report[k] for k in ("accuracy", "latency")},
            "files": files,
            "int8_target": {k: low[k] for k in ("accuracy", "latency")},
        },
    )


def one(run: Path, precision: str) -> dict[str, Any]:
    """Export, with what the file's outputs and accuracy are."""
    path = run / f"{precision}.onnx"
    status, part, _ = prunekit("export", str(run), "--precision", precision, "-o", str(path))
    if status:
        raise SystemExit(f"export in {precision}: exit {status}")
    print(f"{precision}: outputs {part['apart']:.1e} apart, accuracy {part['accuracy']:.4f}")
    return {k: part[k] for k in ("precision", "apart", "accuracy")} | {
        "bytes": path.stat().st_size,
        "fp32_bytes": (run / "model.onnx").stat().st_size,
    }


if __name__ == "__main__":
    main()
