"""Models that are not there, fail, or take other inputs."""

import sys
from pathlib import Path

import pytest

from support.commands import ON_FAKE, SHAPE
from support.refusals import PRUNE, QUICK, Refuses


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet50", "unknown model 'resnet50'; write torchvision:NAME, timm:NAME, zoo:NAME"),
        ("torchvision:resnet51", "torchvision has no model 'resnet51'; did you mean resnet50"),
        ("zoo:resnet21", "unknown zoo model 'resnet21'; known: mobilenet_v1, resnet20"),
        ("timm:resnet51", "timm has no model 'resnet51'; did you mean resnet5"),
        ("gone.py:tiny", "no file gone.py"),
        ("net.py:huge", "net.py has no callable 'huge'"),
        ("net.py:number", "net.py has no callable 'number'"),
        ("net.py:raises", "net.py:raises failed: ValueError: boom"),
        ("net.py:five", "net.py:five returned int, not a torch.nn.Module"),
        ("no.such.package:net", "cannot import 'no.such.package'"),
        ("broken.py:net", "broken.py fails on import: SyntaxError"),
        ("quits.py:net", "quits.py fails on import: SystemExit"),
        ("empty", "empty is a folder without plan.json, not a finished run"),
    ],
)
def test_models(refuses: Refuses, home: Path, model: str, message: str) -> None:
    if model.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is an extra")
    (home / "broken.py").write_text("def net(:\n")
    (home / "quits.py").write_text("import sys\nsys.exit(0)\n")
    (home / "empty").mkdir()
    assert message in refuses("inspect", model, *SHAPE)
    assert message in refuses("prune", model, *ON_FAKE, "-o", "new")


def test_timm_is_missing(refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    line = refuses("inspect", "timm:resnet18", *SHAPE)
    assert line == "timm:resnet18: timm is not installed; pip install 'prunekit[timm]'"


@pytest.mark.parametrize("shape", ["abc", "1x3xx8", "3", "0x3x8x8", "1,3,8,8", ""])
def test_malformed_input(refuses: Refuses, shape: str) -> None:
    message = f"cannot read input shape {shape!r}; write for example 1x3x224x224"
    assert refuses("inspect", "net.py:tiny", "--input", shape) == message
    assert refuses("prune", "net.py:tiny", "--input", shape, "-o", "new") == message


def test_input_the_model_refuses(refuses: Refuses) -> None:
    line = refuses("inspect", "net.py:wide", "--input", "1x1x9x9")
    assert line.startswith("Sequential refuses input 1x1x9x9: RuntimeError: ")
    line = refuses("prune", "zoo:resnet20", "--input", "1x3", "--target", "fake", "-o", "new")
    assert "refuses input 1x3" in line
    line = refuses("export", "zoo:resnet20", "--input", "1x3x9", "-o", "new.onnx")
    assert "refuses input 1x3x9: RuntimeError" in line


def test_nothing_to_prune(refuses: Refuses, home: Path) -> None:
    (home / "flat.py").write_text("from torch import nn\ndef net(): return nn.Linear(8, 2)\n")
    line = refuses("profile", "flat.py:net", "--input", "1x8", "--target", "fake", "-o", "t.json")
    assert line.startswith("flat.py:net has no prunable channels: ")


def test_dense_weights_that_do_not_fit(refuses: Refuses, home: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (home / "cut.safetensors").write_bytes((home / "run" / "model.safetensors").read_bytes()[:99])
    line = refuses(*PRUNE, "--weights", "cut.safetensors", "-o", "new")
    assert line.startswith("cut.safetensors is truncated or not a safetensors file")
    line = refuses(*PRUNE, "--weights", "run/model.safetensors", "-o", "new")
    assert line.startswith("run/model.safetensors does not fit Sequential: 0.weight is (")
    state = load_file(home / "run" / "model.safetensors")
    save_file({**state, "more": torch.zeros(1)}, home / "more.safetensors")
    line = refuses(*PRUNE, "--weights", "more.safetensors", "-o", "new")
    start = "more.safetensors does not fit Sequential: it has more, which the model lacks; 0.weight"
    assert line.startswith(start)
    assert line.endswith("; and 2 more")
    torch.save(state, home / "more.pth")
    line = refuses(*PRUNE, "--weights", "more.pth", "--weights-entry", "ema", "-o", "new")
    assert line == "more.pth has no --weights-entry 'ema'; entries: none"
    line = refuses(*PRUNE, "--weights-entry", "ema", "-o", "new")
    assert line == "--weights-entry is one of a file's; add --weights FILE"
    assert refuses(*PRUNE, "--weights", "gone.safetensors", "-o", "new") == (
        "no file gone.safetensors"
    )


def test_nan_weights(refuses: Refuses, home: Path) -> None:
    (home / "nan.py").write_text(
        "import net, torch\n"
        "def tiny(): m = net.tiny(); torch.nn.init.constant_(m[3].weight, float('nan')); return m\n"
    )
    sys.path.insert(0, str(home))
    try:
        line = refuses("prune", "nan.py:tiny", *QUICK, "-o", "new", work=True)
    finally:
        sys.path.remove(str(home))
        del sys.modules["net"]
    assert "nan" in line.lower()


def test_from_scratch_of_a_run(refuses: Refuses, home: Path) -> None:
    base = ("--base", "net.py:tiny", "--data", "digits", "--from-scratch")
    line = refuses("prune", "run", *ON_FAKE, *base, "--target-latency", "90%", "-o", "new")
    assert line.startswith("--from-scratch begins with random weights, and run is a run")
