"""Make the latency tables that come with the package, on this machine.

    python tools/make_tables.py                 all that are missing
    python tools/make_tables.py --only resnet18 --target onnxruntime:cpu

Run it on an idle machine; about a minute a table. Tables that are there are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

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
                if subprocess.run(command, check=False).returncode:
                    print(f"{path.name}: failed", file=sys.stderr)


if __name__ == "__main__":
    main()
