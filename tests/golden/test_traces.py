"""Seeded runs, bit for bit: losses, scores, widths, plans, tables and files as in traces/*.json.

`python tests/golden/record.py traces` records them anew (`trace_runs` says what is run). Everything
runs in one process whose arithmetic does not depend on the processor: plain kernels, one thread.
With the versions of the recorded packages all is equal to the last bit. With others, decisions
(widths, plans, names, counts) still are, numbers are equal to a thousandth, and checksums are not
compared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded

TRACES = recorded.HERE / "traces"
TREE = recorded.HERE.parents[1]
NEAR = 1e-3
PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_DYNAMIC": "FALSE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENBLAS_L2_SIZE": "512",
    # by the names of NumPy before and since 2.4; those that it does not know, it leaves out
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL "
    "AVX512_SPR AVX2 FMA3 X86_V3 X86_V4",
    "PYTHONHASHSEED": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "TQDM_DISABLE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "100",
    "TZ": "UTC",
}
"""What makes arithmetic the same on all processors, and texts the same in all terminals."""
CHECKSUM = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")
ALWAYS = {"fingerprint", "models"}
"""Checksums of structures, which are no numbers."""
REPORTED = {"report", "said"}
"""What is a report of a run."""
HEX = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-]\d+")


def compute(*only: str, **changed: str | None) -> dict[str, Any]:
    """What the runs give here; ``changed`` are other variables of the environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD", "PRUNEKIT"))}
    given = {**kept, **PINNED, "PYTHONPATH": str(TREE), **changed}
    environment = {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(recorded.HERE / "trace_runs.py"), output, *only],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(output.read_text())


def record(*only: str) -> None:
    result = compute(*only)
    if not only:
        for old in TRACES.glob("*.json"):
            old.unlink()
    for name, found in result["found"].items():
        recorded.write(f"traces/{name}.json", {"versions": result["versions"], "found": found})


def apart(was: Any, now: Any, near: float, where: str = "") -> Iterator[str]:
    """Where two results differ, in words; ``near``: 0 for bit for bit, else a share."""
    if isinstance(was, dict) and isinstance(now, dict):
        # what a report tells in addition is the schemas' matter, which are recorded by themselves
        more = {*now} - {*was} if REPORTED & {*where.split("/")} else set()
        if missing := ({*was} ^ {*now}) - more:
            yield f"{where}: only one of the two has {sorted(missing)}"
        for key in was:
            if key in now:
                # a report's accuracy is ONNX Runtime's, whose kernels are the processor's
                loose = 0.1 if key == "accuracy" and isinstance(was[key], dict) else 0.0
                allowed = 0.0 if key in ALWAYS else max(near, loose)
                yield from apart(was[key], now[key], allowed, f"{where}/{key}")
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{where}: {len(was)} entries were recorded, now {len(now)}"
        for place, (old, new) in enumerate(zip(was, now, strict=False)):
            yield from apart(old, new, near, f"{where}/{place}")
    elif was != now and not (near and _near(was, now, near)):
        yield f"{where}: was {was!r}, now {now!r}"


def _near(was: Any, now: Any, near: float) -> bool:
    """Whether two numbers are as close as that; any two checksums are."""
    if isinstance(was, str) and isinstance(now, str):
        if CHECKSUM.fullmatch(was) and CHECKSUM.fullmatch(now):
            return True
        if HEX.fullmatch(was) and HEX.fullmatch(now):
            was, now = float.fromhex(was), float.fromhex(now)
    if not isinstance(was, float) or not isinstance(now, float):
        return False
    return was == pytest.approx(now, rel=near, abs=1e-9)


@pytest.mark.slow
def test_traces_are_as_recorded() -> None:
    result = compute()
    names = {path.stem for path in TRACES.glob("*.json")}
    assert names == {*result["found"]}, "record the traces anew: python tests/golden/record.py"
    told = []
    for name, now in result["found"].items():
        was = recorded.read(f"traces/{name}.json")
        near = 0.0 if was["versions"] == result["versions"] else NEAR
        found = list(apart(was["found"], now, near, name))
        told += [*found[:12], *([f"{name}: {len(found) - 12} more"] if len(found) > 12 else [])]
    assert not told, "\n".join(told)
