"""Make the latency tables that come with the package, on this machine.

    python tools/make_tables.py                 all that are missing
    python tools/make_tables.py --only resnet18 --target onnxruntime:cpu
    python tools/make_tables.py --only              none; only the list of what is there

Run it on an idle machine; about a minute a table. Tables that are there are kept. The list is
latency_tables/README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from prunekit.latency import LatencyTable
from prunekit.report.markdown import markdown_table

FOLDER = Path(__file__).parent.parent / "latency_tables"
MODELS = {
    **{
        name: (f"torchvision:{name}", "3x224x224")
        for name in (
            *("resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_large"),
            *("mobilenet_v3_small", "efficientnet_b0", "vgg16", "densenet121"),
        )
    },
    **{name: (f"zoo:{name}", "3x32x32") for name in ("resnet20_w32", "mobilenet_v1", "vgg11_bn")},
}
TARGETS = ("onnxruntime:cpu", "openvino:cpu")
BATCHES = (1, 8)
SECONDS = 60
"""Of measuring, for each; what that leaves of the error is in the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--target", nargs="*", default=TARGETS)
    parser.add_argument("--batch", nargs="*", type=int, default=BATCHES)
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for batch in arguments.batch:
        for target in arguments.target:
            for name in arguments.only:
                model, size = MODELS[name]
                path = FOLDER / f"{name}-{target.replace(':', '_')}-b{batch}.json"
                if path.is_file():
                    continue
                command = [sys.executable, "-m", "prunekit", "profile", model]
                command += ["--input", f"{batch}x{size}", "--target", target, "-o", str(path)]
                command += ["--max-seconds", str(SECONDS)]
                if subprocess.run(command, check=False).returncode:
                    print(f"{path.name}: failed", file=sys.stderr)
    describe()


def describe() -> None:
    """Write the list of the tables that are there."""
    tables = {path.stem: LatencyTable.load(path) for path in sorted(FOLDER.glob("*.json"))}
    head = ("table", "granularity", "dense, ms", "networks", "error", "worst")
    rows = []
    for name, table in tables.items():
        milliseconds = f"{table.networks[0].end_to_end_us / 1e3:.3g}"
        found = table.calibration
        counts = (str(table.granularity), milliseconds, str(len(table.networks)))
        rows.append((name, *counts, f"{found.mape:.1%}", f"{found.worst:.1%}"))
    devices = {table.environment.device_name for table in tables.values()}
    (FOLDER / "README.md").write_text(
        "# Latency tables\n\n"
        "Made by `python tools/make_tables.py`, one JSON file each, shipped with the package and "
        f"found by name:\n`prunekit table show {next(iter(tables), 'NAME')}`. "
        f"One thread of: {', '.join(sorted(devices))}. The errors are of\nthe latency relative to "
        "dense, each network left out of the fit in its turn. On another device, "
        "`prunekit profile\n--transfer NAME` calibrates one by five whole networks.\n\n"
        + "\n".join(markdown_table(head, rows))
        + "\n"
    )


if __name__ == "__main__":
    main()
