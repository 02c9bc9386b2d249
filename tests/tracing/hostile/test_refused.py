"""What cannot be traced is refused in one line."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.support.errors import PrunekitError
from support.hostile import IMAGE, TOKENS, Deep, Gives, Line, Net, quietly, same
from support.nets import Plain


class Pads(Line):
    """Sequences of different lengths."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, x):
        x = torch.nested.nested_tensor([x[0, :3], x[1]], layout=self.layout)
        return super().forward(x).to_padded_tensor(0.0)


def prepared() -> nn.Module:
    """Ready to be trained with quantised weights."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


REFUSED = {
    "torch.cond": (
        lambda: Net(lambda s, x: torch.cond(x.sum() > 0, s.p, s.q, (x,)), p=same(), q=same()),
        IMAGE,
        "the model uses torch's cond, which cannot be followed; write it with plain Python",
    ),
    "script": (
        lambda: quietly(torch.jit.script, Plain()),
        IMAGE,
        "the model is a compiled RecursiveScriptModule",
    ),
    "script inside": (
        lambda: Net(lambda s, x: s.p(x), p=quietly(torch.jit.script, same())),
        IMAGE,
        "p is a compiled RecursiveScriptModule.*use the nn.Module that it was made from",
    ),
    "traced": (
        lambda: quietly(torch.jit.trace, Plain(), IMAGE),
        IMAGE,
        "the model is a compiled",
    ),
    "jagged": (lambda: Pads(torch.jagged), TOKENS, "nested tensors, which cannot be followed"),
    "nested": (lambda: Pads(torch.strided), TOKENS, "nested tensors, which cannot be followed"),
    "lazy": (lambda: Net(p=nn.LazyConv2d(4, 1)), IMAGE, "Net has lazy layers without a size; run"),
    "meta": (lambda: Plain().to("meta"), IMAGE, "Plain cannot be copied: .*meta tensor"),
    "old weight norm": (
        lambda: quietly(nn.utils.weight_norm, same()),
        torch.randn(1, 8, 8, 8),
        "cannot be copied: RuntimeError",
    ),
    "list": (Plain, [IMAGE], "Plain refuses input"),
    "no samples": (Plain, IMAGE[:0], "the example is empty; give one with a sample"),
    "prepared for quantisation": (
        prepared,
        IMAGE,
        r"0 \(Conv2d\) imitates a quantised weight; prune the network first, then prepare what is",
    ),
    "gives nothing": (lambda: Gives(lambda z, x, y: None), IMAGE, "the model returns no tensor"),
    "gives a set": (lambda: Gives(lambda z, x, y: {1}), IMAGE, "the model returns a set"),
    "gives an array": (lambda: Gives(lambda z, x, y: z.numpy()), IMAGE, "returns a ndarray"),
    "gives a generator": (lambda: Gives(lambda z, x, y: (t for t in [z])), IMAGE, "a generator"),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_in_one_line(name):
    make, example, message = REFUSED[name]
    with pytest.raises(PrunekitError, match=message) as caught:
        pk.trace(make().eval(), example)
    assert "\n" not in str(caught.value)


def test_a_model_too_deep_to_copy_is_refused_in_one_line():
    model, limit = Deep(320), sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        with pytest.raises(PrunekitError, match="Deep cannot be copied: RecursionError") as caught:
            pk.trace(model, TOKENS)
    finally:
        sys.setrecursionlimit(limit)
    assert "\n" not in str(caught.value)
