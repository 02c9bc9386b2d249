"""What `prunekit export` writes."""

import json
from pathlib import Path

import numpy as np

from support.commands import SHAPE, Says, onnx_outputs


def test_export(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit(
        *("export", "run", "--model", "net.py:tiny", "-o", "new.onnx", "--json")
    )
    assert (status, err) == (0, "")
    assert json.loads(out)["path"] == "new.onnx"
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    new, old = (onnx_outputs(home / p, images) for p in ("new.onnx", "run/model.onnx"))
    assert np.abs(new - old).max() <= 1e-5
    status, out, _ = prunekit("export", "net.py:tiny", *SHAPE, "-o", "dense.onnx")
    assert status == 0
    assert out.startswith("dense.onnx (")
    grey = ("export", "zoo:resnet8", "--input", "1x1x16x16", "-o", "grey.onnx")  # 3 by default
    assert prunekit(*grey)[0] == 0
    status, out, err = prunekit(*grey, "--base", "net.py:tiny", "--overwrite")
    assert (status, out) == (2, "")
    assert "`base` is for a MODEL that is a run folder, and zoo:resnet8 is none" in err
