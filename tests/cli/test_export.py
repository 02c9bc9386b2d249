"""What `prunekit export` writes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import prunekit as pk
from prunekit import zoo
from prunekit.pipeline.accuracy import file_accuracy
from prunekit.train import load_data
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


def test_forms_for_other_compilers(prunekit: Says, home: Path) -> None:
    given = ("export", "run", "--model", "net.py:tiny", "-o")
    status, _, err = prunekit(*given, "npu.onnx", "--opset", "12", "--static")
    assert (status, err) == (0, "")
    proto = onnx.load(home / "npu.onnx")
    assert [e.version for e in proto.opset_import if e.domain == ""] == [12]
    sizes = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1, 1, 8, 8]
    status, _, err = prunekit(*given, "free.onnx", "--dynamic", "height,width")
    assert (status, err) == (0, "")
    free = [
        d.dim_param for d in onnx.load(home / "free.onnx").graph.input[0].type.tensor_type.shape.dim
    ]
    assert free == ["batch", "", "height", "width"]


def test_the_accuracy_of_a_file_with_a_fixed_batch(tmp_path: Path) -> None:
    data, images = load_data("digits", (1, 16, 16)), torch.randn(3, 1, 16, 16)
    torch.manual_seed(0)
    model = zoo.build("resnet8", in_channels=1, num_classes=10).eval()
    shares = [
        file_accuracy(
            Path(pk.export(model, images, tmp_path / f"{n}.onnx", dynamic=free).path), data
        )
        for n, free in enumerate([("batch",), ()])
    ]
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--opset", "9"), "opset 9: files are written in opset 11 to 25"),
        (("--dynamic", "colour"), "dynamic size 'colour' is not known; write batch, depth, "),
        (("--dynamic", "depth"), "no input has a dynamic size 'depth'; inputs are 1x1x8x8"),
        (("--format", "openvino", "--opset", "13"), "--opset is for ONNX files, and this is openv"),
        (("--format", "openvino", "--static"), "--static or --dynamic is for ONNX files, and thi"),
    ],
)
def test_forms_that_cannot_be(prunekit: Says, home: Path, flags, message) -> None:
    status, out, err = prunekit("export", "net.py:tiny", *SHAPE, "-o", "x.onnx", *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"prunekit: {message}")
    assert not (home / "x.onnx").exists()
