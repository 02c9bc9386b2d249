"""Examples made from text and by functions, and networks that take them from trace to report."""

from __future__ import annotations

import json

import onnx
import pytest
import torch

from prunekit.networks.saved import saved_input
from prunekit.pipeline.examples import described, example_input, recipe_example
from prunekit.pipeline.recipes.prune import make_recipe
from prunekit.support.errors import UsageError
from support.commands import Says

NETS = """
import torch
from torch import nn

def features():
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8),
    )

class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = features(), nn.Linear(8, 2)
    def forward(self, left, right):
        return self.head((self.features(left) - self.features(right)).abs())

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(50, 64), nn.Linear(64, 512), nn.Linear(512, 3)
    def forward(self, ids, mask):
        x = self.a(self.table(ids)).relu() * mask.unsqueeze(-1)
        return self.b(x.mean(1))

def words_example(batch):
    return {"ids": torch.randint(50, (batch, 64)), "mask": torch.ones(batch, 64, dtype=torch.int64)}

def wrong():
    return "text"
"""
QUICK = ("--target", "fake", "--target-latency", "90%", "--epochs", "0")
WORDS = "ids=1x64:int64<50,mask=1x64:int64=1"


@pytest.fixture
def nets(home):
    (home / "nets.py").write_text(NETS)
    return home


def test_examples_are_as_they_are_written():
    plain = example_input("1x3x8x8")
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(plain, torch.randn(1, 3, 8, 8, generator=generator))
    pair = example_input("1x3,2x4")
    assert [tuple(t.shape) for t in pair] == [(1, 3), (2, 4)]
    named = example_input(f"{WORDS},share=2x2<0.5,yes=3:bool")
    assert [*named] == ["ids", "mask", "share", "yes"]
    assert named["ids"].dtype == torch.int64
    assert 0 <= int(named["ids"].min()) <= int(named["ids"].max()) < 50
    assert bool((named["mask"] == 1).all())
    assert 0 <= float(named["share"].min()) <= float(named["share"].max()) <= 0.5
    assert named["yes"].dtype == torch.bool
    again = example_input(described(named))
    assert [(n, t.shape, t.dtype) for n, t in again.items()] == [
        (n, t.shape, t.dtype) for n, t in named.items()
    ]


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        ("Twins", ("--input", "1x3x24x24,1x3x24x24")),
        ("Twins", ("--input", "left=1x3x24x24,right=1x3x24x24")),
        ("Words", ("--input", WORDS)),
        ("Words", ("--example", "nets.py:words_example")),
    ],
)
def test_networks_of_several_inputs_are_pruned(prunekit: Says, nets, net, inputs):
    status, _, err = prunekit("prune", f"nets.py:{net}", *inputs, *QUICK, "-o", "out")
    assert status == 0, err
    graph = onnx.load(nets / "out" / "model.onnx").graph
    wanted = ["left", "right"] if net == "Twins" else ["ids", "mask"]
    assert [value.name for value in graph.input] == wanted
    assert len(saved_input("out").split(",")) == 2
    base = ("--base", f"nets.py:{net}")
    for command in (("inspect", "out", *base), ("export", "out", *base, "-o", "new.onnx")):
        assert prunekit(*command)[0] == 0
    assert prunekit("bench", "out/dense.onnx", "out/model.onnx", "--target", "fake")[0] == 0
    status, out, _ = prunekit("inspect", f"nets.py:{net}", *inputs, "--json")
    assert status == 0
    assert json.loads(out)["prunable_macs_share"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("nets.py:Twins", "--input", "1x3x24x24"),
            "takes left, right: --input left=S",
        ),
        (("nets.py:Words", "--input", "1x64,1x64"), "such as token ids: --input 1x64:int64<100"),
        (("nets.py:Words", "--example", "nets.py:wrong"), "nets.py:wrong returned str; an example"),
        (("nets.py:Words", "--example", "nets.py:none"), "nets.py has no callable 'none'"),
        (("model.onnx", "--input", "1x3"), "model.onnx is an ONNX file, not a network that can b"),
        (("w.pth", "--input", "1x3"), "and its weights as --weights w.pth"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(prunekit: Says, nets, arguments, message):
    status, out, err = prunekit("inspect", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_one_of_input_and_example():
    with pytest.raises(UsageError, match="--example and --input exclude each other; keep one"):
        make_recipe({"model": "zoo:resnet8", "input": "1x3x24x24", "example": "a.py:b"})
    recipe = make_recipe({"model": "zoo:resnet8", "input": "2x3x8x8"})
    assert recipe_example(recipe).shape == (2, 3, 8, 8)
