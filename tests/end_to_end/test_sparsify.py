"""`prunekit sparsify` end to end, what its run folder is good for, and bad input."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import prunekit as pk
from prunekit.exporting.sparse import check_pattern
from prunekit.sparsify import verify
from support.commands import Says
from support.interrupting import SLOW_EPOCHS as EPOCHS
from support.interrupting import interrupted, interrupted_here

NET = """
import torch
from torch import nn

def net(num_classes=10, in_channels=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, num_classes),
    )

def odd(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, num_classes))
"""
RUN = (
    *("sparsify", "own.py:net", "--data", "digits", "--input", "1x1x8x8"),
    *("--batch-size", 128, "--epochs", 3, "--target", "fake"),
)


@pytest.fixture
def own(home: Path) -> Path:
    (home / "own.py").write_text(NET)
    return home


def answers(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"input": image.numpy()})[0], image


def test_from_random_weights_to_a_report(prunekit: Says, own: Path) -> None:
    status, out, err = prunekit(
        *RUN, "--from-scratch", "--sparsity", "90%", "--option", "every=4", "--option",
        "explore=3", "-o", "sparse", "--json",
    )  # fmt: skip
    assert status == 0, err
    report = json.loads(out)
    assert report["plan"]["method"] == "iee"
    assert report["accuracy"]["dense"] is None
    assert 0 <= report["accuracy"]["pruned"] <= 1
    assert 0.1 < report["training_cost"]["relative_flops"] < 0.9
    assert report["training_cost"]["seconds"] > 0
    assert report["params"]["pruned"] < 0.2 * report["params"]["dense"]
    assert [part["target"]["runtime"] for part in report["speed"]] == ["fake"]
    assert report["updates"]
    assert sorted(p.name for p in (own / "sparse").iterdir()) == [
        *("config.toml", "dense.onnx", "log.jsonl", "model.onnx", "model.safetensors"),
        *("plan.json", "report.html", "report.json", "sparsity.json"),
    ]
    plan = pk.SparsityPlan.load(own / "sparse" / "sparsity.json")
    assert plan.sparsity == pytest.approx(0.9, abs=1e-3)
    assert [layer.name for layer in plan.layers if layer.dense] == ["0"]
    sys.path.insert(0, str(own))
    loaded = pk.load(own / "sparse", "own.py:net")
    verify(loaded, plan)
    found, image = answers(own / "sparse" / "model.onnx")
    assert np.allclose(found, loaded(image).detach().numpy(), atol=1e-4)
    rows = [json.loads(line) for line in (own / "sparse/log.jsonl").read_text().splitlines()]
    updates = [row for row in rows if row["stage"] == "update"]
    assert all(0 < d <= 1 for row in updates for d in row["densities"].values())
    assert updates[-1]["relative_flops"] < 1

    status, out, _ = prunekit("report", "sparse")
    assert status == 0
    assert "No runtime measured here gains speed from the zeros (fake:cpu)" in out
    assert "| 3 | 16x8x3x3 |" in out
    page = (own / "sparse" / "report.html").read_text()
    assert "Density of every layer" in page
    assert "Training loss" in page
    assert "http" not in page.replace("http-equiv", "")

    model = ("--model", "own.py:net")
    assert prunekit("export", "sparse", *model, "-o", "dense.onnx", "--input", "1x1x8x8")[0] == 0
    status, _, err = prunekit(
        "export", "sparse", *model, "-o", "small.onnx", "--sparse-initializers"
    )
    assert status == 0, err
    small = own / "small.onnx"
    assert len(onnx.load(small).graph.sparse_initializer) >= 2
    assert small.stat().st_size < (own / "dense.onnx").stat().st_size
    assert np.allclose(answers(small)[0], found, atol=1e-5)
    status, out, err = prunekit("bench", "sparse/dense.onnx", "sparse", "--target", "fake")
    assert status == 0, err
    status, out, err = prunekit("check", "--baseline", "sparse/report.json")
    assert status == 0, err
    assert out.startswith("pass")
    whole = (own / "run/dense.onnx", "--baseline", "sparse/report.json")
    assert prunekit("check", *whole)[0] == 1  # another network, and slower
    # a sparse network is one to go on from
    status, _, err = prunekit(
        *("sparsify", "sparse", "--input", "1x1x8x8", "--method", "static", "--target", "fake"),
        *("--sparsity", "95%", "-o", "sparser"),
    )
    assert status == 2
    assert "pass `model`" in err


def test_two_of_four_from_a_trained_network(prunekit: Says, own: Path) -> None:
    status, out, err = prunekit(
        *RUN, "--from-scratch", "--dense-epochs", 4, "--method", "static", "--pattern", "2:4",
        "-o", "two", "--json",
    )  # fmt: skip
    assert status == 0, err
    report = json.loads(out)
    assert report["accuracy"]["dense"] > 0.5
    assert report["accuracy"]["pruned"] > 0.5
    assert report["training_cost"]["relative_flops"] > 1
    assert report["plan"]["pattern"] == "2:4"
    proto = onnx.load(own / "two" / "model.onnx")
    assert {p.key: p.value for p in proto.metadata_props}["prunekit.pattern"] == "2:4"
    sys.path.insert(0, str(own))
    plan = pk.SparsityPlan.load(own / "two" / "sparsity.json")
    model = pk.load(own / "two", "own.py:net")
    assert check_pattern(proto, model, plan) == len(plan.sparse) == 3
    verify(model, plan)
    assert (own / "two" / "dense.safetensors").is_file()
    assert "TensorRT's sparse kernels take the pattern 2:4" in prunekit("report", "two")[1]
    for precision in ("fp16", "int8"):  # fewer bits keep the zeros, and the file its mark
        low = own / f"{precision}.onnx"
        status, _, err = prunekit(
            *("export", "two", "--model", "own.py:net", "--precision", precision, "-o", low)
        )
        assert status == 0, err
        lowered = onnx.load(low)
        assert {p.key: p.value for p in lowered.metadata_props}["prunekit.pattern"] == "2:4"
        weights = [onnx.numpy_helper.to_array(t) for t in lowered.graph.initializer]
        sizes = sorted((w for w in weights if w.ndim == 2), key=lambda w: -w.size)
        assert np.count_nonzero(sizes[0]) <= sizes[0].size // 2
    for tensor in proto.graph.initializer:
        if tensor.name == "7.weight":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[0, :4] = 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(pk.PrunekitError, match="the exported weight of 7 has"):
        check_pattern(proto, model, plan)


def test_without_data_the_largest_weights_stay(prunekit: Says, own: Path) -> None:
    status, out, err = prunekit(
        *("sparsify", "own.py:net", "--input", "1x1x8x8", "--method", "static"),
        *("--sparsity", "0.8", "--distribution", "uniform", "--target", "fake", "-o", "quick"),
        *("--json", "-q"),
    )
    assert status == 0, err
    report = json.loads(out)
    assert report["training_cost"]["relative_flops"] is None
    kept = {layer["name"]: layer["kept"] for layer in report["plan"]["layers"]}
    assert kept == {"0": 72, "3": 230, "7": 1639, "9": 64}
    assert "training: none" in prunekit("report", "quick")[1]


@pytest.mark.parametrize("method", ["iee", "rigl"])
def test_interrupted_and_resumed_ends_in_the_same_weights(
    prunekit: Says, own: Path, method: str
) -> None:
    command = (
        *RUN, "--from-scratch", "--method", method, "--option", "every=5", "--epochs", 4,
        "--seed", 1,
    )  # fmt: skip
    assert prunekit(*command, "-o", "whole", "-q")[0] == 0
    checkpoint = own / "cut" / "work" / "sparse-training" / "checkpoint.safetensors"
    if method == "iee":
        err = interrupted(own, EPOCHS, (*command, "-o", "cut"), checkpoint.is_file)
    else:
        err = interrupted_here(prunekit, EPOCHS, (*command, "-o", "cut"), checkpoint.is_file)
    assert "finished rounds and epochs are in cut: same command with --resume" in err
    status, _, err = prunekit(*command, "-o", "cut", "--resume", "--sparsity", "80%")
    assert status == 2
    assert "`sparsity` is '80%' now and was None" in err
    status, _, err = prunekit(*command, "-o", "cut", "--resume", "-q")
    assert status == 0, err
    same = [(own / run / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert same[0] == same[1]
    plans = [(own / run / "sparsity.json").read_bytes() for run in ("whole", "cut")]
    assert plans[0] == plans[1]
    assert "is finished already" in prunekit(*command, "-o", "cut", "--resume")[2]


def test_killed_and_resumed(prunekit: Says, own: Path) -> None:
    command = (*RUN, "--from-scratch", "--epochs", 5, "-o", "killed")
    checkpoint = own / "killed" / "work" / "sparse-training" / "checkpoint.safetensors"
    program = [sys.executable, "-m", "prunekit", *map(str, command)]
    with subprocess.Popen(program, cwd=own, stderr=subprocess.DEVNULL) as process:
        while not checkpoint.is_file() and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
    status, _, err = prunekit(*command, "--resume")
    assert status == 0, err
    assert (own / "killed" / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "0"), "`sparsity` must be above 0 and below 1 (0 % and 100 %), not '0'"),
        (("--sparsity", "100%"), "`sparsity` must be above 0 and below 1"),
        (("--sparsity", "90"), "`sparsity` must be above 0 and below 1"),
        (("--sparsity", "99.99%"), "leaves 1 of 9664 weights for 3 layers"),
        (("--sparsity", "90%", "--pattern", "2:4"), "pattern 2:4 means a sparsity of 0.5, not 0.9"),
        (
            ("--pattern", "2:3"),
            "pattern 2:3 does not divide layer 3, which has 8 inputs, no multiple of 3; nor 7, 9; "
            "keep them dense (--dense 3 --dense 7 --dense 9) or use another pattern",
        ),
        (("--pattern", "4:2"), "cannot read pattern '4:2'"),
        (("--dense", "fc*"), "`dense` names 'fc*', which matches no layer; layers: 0, 3, 7, 9"),
        (("--dense", "*"), "every layer of Sequential is dense; name fewer"),
        (("--dense", "none", "--dense", "first"), "--dense none and --dense first exclude each"),
        (("--method", "prune"), "`method` in the flags: Input should be 'iee', 'rigl'"),
        (("--distribution", "even"), "`distribution` in the flags: Input should be"),
        (("--ranking", "all"), "`ranking` in the flags: Input should be"),
        (("--criterion", "fpgm"), "criterion 'fpgm' scores channels only"),
        (("--criterion", "best"), "unknown criteria name 'best'"),
        (("--option", "every"), "cannot read --option 'every'; write KEY=VALUE, such as every=50"),
        (("--option", "omega=1"), "unknown option 'omega'; known: every"),
        (("--option", "every=0"), "`every` must be a whole number of at least 1, not 0"),
        (("--option", "every=99"), "one cycle of iee takes"),
        (
            ("--method", "rigl", "--option", "explore=2"),
            "option 'explore' has no meaning for method rigl, which reads every, fraction, decay",
        ),
        (("--method", "gmp", "--option", "stop_iou=0.9"), "which reads every, until, seed"),
        (
            ("--method", "static", "--criterion", "taylor"),
            "static chooses before any training, when taylor has no gradients",
        ),
        (
            ("--option", "explore=0", "--option", "source=mru", "--criterion", "taylor"),
            "no gradients",
        ),
        (("--epochs", "0"), "method iee works while it trains; give --epochs 1 or more"),
        (("--ema", "0.9"), "--ema would average what method iee explores"),
        (("--distill", "0.5"), "--distill needs a trained dense network"),
        (("--method", "static", "--option", "every=5"), "method static exchanges nothing"),
        (("--pretrained",), "--from-scratch and --pretrained exclude each other"),
        (("--target", "toaster"), "unknown runtimes name 'toaster'"),
        (("--sparsety", "90%"), "No such option: --sparsety"),
    ],
)
def test_refused(own: Path, refuses, arguments, message) -> None:
    assert message in refuses(*RUN, "--from-scratch", *arguments, "-o", "bad")


def test_refused_without_data(own: Path, refuses) -> None:
    base = ("sparsify", "own.py:net", "--input", "1x1x8x8", "-o", "bad")
    assert "--method iee needs data; add --data" in refuses(*base)
    assert "--from-scratch needs data" in refuses(*base, "--method", "static", "--from-scratch")
    assert "no model given" in refuses("sparsify", "--data", "digits")
    assert "--sparse-initializers is for the fp32 ONNX file of a sparse run" in refuses(
        "export", "run", "--sparse-initializers"
    )


def test_a_damaged_plan_is_named(prunekit: Says, own: Path) -> None:
    assert (
        prunekit(
            *("sparsify", "own.py:net", "--input", "1x1x8x8", "--method", "static"),
            *("--target", "fake", "-o", "quick", "-q"),
        )[0]
        == 0
    )
    path = own / "quick" / "sparsity.json"
    plan = pk.SparsityPlan.load(path)
    fewer = [*plan.layers]
    fewer[1] = replace(fewer[1], kept=1)
    replace(plan, layers=tuple(fewer)).save(path)
    status, _, err = prunekit("export", "quick", "--model", "own.py:net", "-o", "x.onnx")
    assert status == 2
    assert "sparsity.json is not of" in err
    assert "has 80 weights that are not zero, its plan 1" in err
    assert not (own / "x.onnx").exists()


def test_layers_that_only_training_runs(prunekit: Says, own: Path) -> None:
    """A head that the exported network lacks keeps its pattern, and no file has to show it."""
    text = """
class Helped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.aux, self.head = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, x):
        x = self.body(x.flatten(1)).relu()
        return self.head(x) + (self.aux(x) if self.training else 0)

def helped(num_classes=10):
    return Helped()
"""
    (own / "own.py").write_text(NET + text)
    command = ("sparsify", "own.py:helped", "--data", "digits", "--input", "1x1x8x8")
    more = ("--epochs", 1, "--target", "fake", "--from-scratch", "--method", "rigl")
    status, _, err = prunekit(*command, *more, "--pattern", "2:4", "-o", "helped")
    assert status == 0, err
    assert "note: no FLOPs of aux are counted: not called on the example input" in err
    plan = pk.SparsityPlan.load(own / "helped" / "sparsity.json")
    assert [layer.name for layer in plan.sparse] == ["aux", "head"]
