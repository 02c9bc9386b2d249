"""Parameters and numbers outside of modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.support.errors import PrunekitError
from support.hostile import CONSTANT, IMAGE, Case, Net, check, line, net, parameter, same


class Buffer(Net):
    def __init__(self, how, tensor):
        super().__init__(how)
        self.register_buffer("t", tensor)


class Attribute(Net):
    def __init__(self, how, tensor):
        super().__init__(how)
        self.t = [tensor]


class Normed(Net):
    def __init__(self):
        super().__init__(lambda s, x: F.batch_norm(x, s.mean, s.var, s.gain))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 1)
        self.gain = nn.Parameter(torch.randn(8))


FAILS = "the slim network fails"
BY_NUMBER = "picks channels by number"
PARAMETERS = {
    "bias": net(lambda s, x: x + s.w, "a b", w=parameter(8, 1, 1)),
    "scale": net(lambda s, x: x * s.w.view(1, -1, 1, 1), "a b", w=parameter(8)),
    "scale, literal": net(lambda s, x: x * s.w.view(1, 8, 1, 1), "b", FAILS, w=parameter(8)),
    "convolution": net(lambda s, x: F.conv2d(x, s.w), "a b", w=parameter(8, 8, 1, 1)),
    "depthwise convolution": net(
        lambda s, x: F.conv2d(x, s.w, groups=8), "b", "is no convolution", w=parameter(8, 1, 1, 1)
    ),
    "norm": Case(Normed, IMAGE, {"a", "b"}),
    "einsum": net(lambda s, x: torch.einsum("bchw,dc->bdhw", x, s.w), "a b", w=parameter(8, 8)),
    "einsum of three": net(
        lambda s, x: torch.einsum("bchw,cr,rd->bdhw", x, s.w, s.v),
        "a b",
        w=parameter(8, 5),
        v=parameter(5, 8),
    ),
    "product": line(lambda s, x: x @ s.w, "a b", w=parameter(12, 12)),
    "product from the left": net(
        lambda s, x: (s.w @ x.flatten(2)).view(len(x), -1, 8, 8), "a b", w=parameter(8, 8)
    ),
    "indexed": line(lambda s, x: x * s.w[0], "a b", w=parameter(3, 12)),
    "indexed by a tensor": line(
        lambda s, x: x * s.w[torch.tensor([1, 0])].sum(0), "a b", w=parameter(3, 12)
    ),
    "turned round": line(
        lambda s, x: x * s.w[torch.arange(11, -1, -1)], "b", CONSTANT, w=parameter(12)
    ),
    "reshaped": line(lambda s, x: x * s.w.reshape(-1), "b", CONSTANT, w=parameter(3, 4)),
    "diagonal": net(
        lambda s, x: x * torch.diagonal(s.w).view(1, -1, 1, 1), "a b", w=parameter(8, 8)
    ),
    "outer product": net(
        lambda s, x: x * torch.einsum("c,d->cd", s.w, s.w).sum(1).view(-1, 1, 1),
        "a b",
        w=parameter(8),
    ),
    "inverse": net(
        lambda s, x: F.conv2d(x, torch.linalg.inv(s.w)[:, :, None, None]),
        "b",
        "computes the weight that reads it",
        w=parameter(8, 8),
    ),
    "weight of a network": net(
        lambda s, x: F.conv2d(x, s.p(s.w).view(8, 8, 1, 1)),
        "b",
        "computes the weight that reads it",
        p=lambda: nn.Linear(4, 64),
        w=parameter(4),
    ),
    "weight of experts": net(
        lambda s, x: F.conv2d(
            x, torch.einsum("e,eoikl->oikl", s.p(x.mean((0, 2, 3))).softmax(0), s.w)
        ),
        "b",
        {"p": "compares channels"},
        w=parameter(3, 8, 8, 1, 1),
        p=lambda: nn.Linear(8, 3),
    ),
    "list of parameters": net(
        lambda s, x: x * s.w[0],
        "a b",
        w=lambda: nn.ParameterList([torch.rand(8, 1, 1)]),
    ),
    "dict of parameters": net(
        lambda s, x: x * s.w["k"], "a b", w=lambda: nn.ParameterDict({"k": torch.rand(8, 1, 1)})
    ),
    "buffer": Case(lambda: Buffer(lambda s, x: x * s.t, torch.rand(1, 8, 1, 1)), IMAGE, {"a", "b"}),
    "mask": Case(
        lambda: Buffer(lambda s, x: x.masked_fill(s.t, 0.5), torch.rand(1, 8, 1, 1) > 0.5),
        IMAGE,
        {"a", "b"},
    ),
    "buffer as an index": Case(
        lambda: Buffer(lambda s, x: x[:, s.t], torch.randperm(8)), IMAGE, {"b"}, {"a": BY_NUMBER}
    ),
    "buffer that selects": Case(
        lambda: Buffer(lambda s, x: x.index_select(1, s.t), torch.randperm(8)),
        IMAGE,
        {"b"},
        {"a": BY_NUMBER},
    ),
    "tensor in a list": Case(
        lambda: Attribute(lambda s, x: x * s.t[0], torch.rand(1, 8, 1, 1)),
        IMAGE,
        {"b"},
        {"a": CONSTANT},
    ),
    "constant": net(lambda s, x: x * torch.ones(1, 8, 1, 1), "b", CONSTANT),
    "constant as wide as it comes": net(
        lambda s, x: x * torch.arange(x.shape[1]).view(-1, 1, 1), "b", CONSTANT
    ),
    "view": net(lambda s, x: x.view(-1, 8, 64).view_as(x), "b", FAILS),
    "split": net(lambda s, x: torch.cat(x.split([4, 4], 1), 1), "b", FAILS),
    "uneven split": net(lambda s, x: torch.cat(x.split([3, 5], 1)[::-1], 1), "b", "unevenly"),
    "expand": net(lambda s, x: x + x.mean((2, 3), keepdim=True).expand(-1, 8, -1, -1), "b", FAILS),
    "expand as": net(lambda s, x: x + x.mean((2, 3), keepdim=True).expand_as(x), "a b"),
    "unflatten": net(
        lambda s, x: s.p(x).flatten(1, 2), "b", FAILS, p=lambda: nn.Unflatten(1, (2, 4))
    ),
    "second half": net(lambda s, x: x[:, 4:], "b", FAILS, wide=4),
    "second half of what comes": net(lambda s, x: x[:, x.shape[1] // 2 :], "a b", wide=4),
    "slice": net(lambda s, x: x[:, 2:], "b", "takes a slice of it", wide=6),
    "every second": net(lambda s, x: x[:, ::2], "b", "takes a slice of it", wide=4),
    "some": net(lambda s, x: x[:, [3, 1, 2]], "b", BY_NUMBER, wide=3),
    "root of the width": net(lambda s, x: x * x.shape[1] ** -0.5, "b", "zeroing"),
    "new layer in forward": net(lambda s, x: nn.Conv2d(8, 8, 1)(x), "b", "computes the weight"),
    "new norm in forward": net(lambda s, x: nn.BatchNorm2d(8).eval()(x), "b", FAILS),
    "strides": net(lambda s, x: x.as_strided((len(x), 8, 8, 8), (512, 64, 8, 1)), "b", FAILS),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_numbers_outside_of_modules(name):
    check(PARAMETERS[name])


def test_parameters_that_share_memory_unknown_to_pytorch_are_not_zeroed():
    model = Net(lambda s, x: s.q(s.p(x)), p=same(), q=same())
    model.q.weight = nn.Parameter(model.p.weight.data)
    plan = pk.ChannelPlan.random(pk.trace(model.eval(), IMAGE), 0.5)
    with pytest.raises(
        PrunekitError, match=r"p\.weight and q\.weight share memory without being one"
    ):
        pk.mask_(model, plan)
    pk.mask_(copy.deepcopy(model), plan)  # a copy has memory of its own for each
