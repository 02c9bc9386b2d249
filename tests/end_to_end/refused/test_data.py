"""Data that is not there, broken, or does not fit."""

from pathlib import Path

import numpy as np
from PIL import Image

from support.refusals import PRUNE, Refuses


def images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_data(refuses: Refuses, home: Path) -> None:
    def line(data: str) -> str:
        return refuses(*PRUNE, "--data", data, "-q", "-o", "new")

    assert "gone" in line("imagefolder:gone")
    images(home / "one", ("cat",))
    assert line("imagefolder:one") == ("only one class folder in one: cat; at least two are needed")
    images(home / "none")
    for path in (home / "none" / "dog").iterdir():
        path.unlink()
    assert line("imagefolder:none").startswith("no images in class folder none/dog")
    (home / "bare").mkdir()
    assert line("imagefolder:bare").startswith("no class folders in bare")
    broken = images(home / "broken") / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert line("imagefolder:broken").startswith("cannot read image broken/dog/2.png")
    assert line("imagefolder:").startswith("data 'imagefolder:' lacks its folder")
    assert line("pictures").startswith("unknown data 'pictures'; known: digits, imagefolder:PATH")
    assert line("net.py:raises").startswith("net.py:raises failed: ValueError: boom")
    assert "cifar10" in line("cifar10:bare").lower()


def test_a_data_factory_that_quits(refuses: Refuses, home: Path) -> None:
    (home / "early.py").write_text("import sys\nsys.exit(0)\n")
    (home / "late.py").write_text("import sys\ndef make(): sys.exit('no disk')\n")
    for data, message in (
        ("early.py:make", "early.py fails on import: SystemExit: 0"),
        ("late.py:make", "late.py:make failed: SystemExit: no disk"),
    ):
        assert refuses(*PRUNE, "--data", data, "-o", "new") == message


def test_nan_loss(refuses: Refuses) -> None:
    training = ("--data", "digits", "--epochs", 2, "--lr", 1e9, "--warmup-epochs", 0)
    line = refuses(*PRUNE, *training, "--from-scratch", "-o", "new", work=True)
    assert line.startswith("the loss became ")
    assert "in epoch 1 at step" in line
    assert line.endswith("lower `lr`, lengthen `warmup_epochs` or set `clip_norm`")


def test_more_classes_than_outputs(refuses: Refuses, home: Path) -> None:
    (home / "many.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def data(input_shape, seed):\n"
        "    found = TensorDataset(torch.rand(24, *input_shape), torch.arange(24) % 12)\n"
        "    return found, found\n"
    )
    export = ("export", "run", "--model", "net.py:tiny", "--precision", "fp16", "-o", "a.onnx")
    line = refuses(*export, "--data", "many.py:data")
    assert line.startswith("the model has 10 outputs but the data has 12 classes")
