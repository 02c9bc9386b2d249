"""Modules of the library, precision and state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from support.hostile import (
    CONSTANT,
    IMAGE,
    OUTPUT,
    TOKENS,
    Case,
    Net,
    check,
    line,
    net,
    quietly,
    same,
    wide,
)
from support.nets import image


def over_time(s, x):
    h, out = x.new_zeros(len(x), s.p.hidden_size), []
    for step in x.unbind(1):
        h = s.p(step, h)
        out.append(h)
    return torch.stack(out, 1)


def own_cell(s, x):
    h, out = torch.zeros_like(x[:, 0]), []
    for step in x.unbind(1):
        h = torch.tanh(s.p(step) + s.q(h))
        out.append(h)
    return torch.stack(out, 1)


def packed(s, x):
    x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(s.p(x)[0], batch_first=True)[0]


class State(Net):
    """Remembers something of what it saw."""

    def __init__(self, form):
        super().__init__(getattr(self, form))
        self.register_buffer("seen", torch.zeros(8))
        self.last, self.calls, self.p = None, 0, same()

    @staticmethod
    def in_place(s, x):
        s.seen.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def assigned(s, x):
        s.seen = 0.9 * s.seen + 0.1 * x.mean((0, 2, 3))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def copied(s, x):
        s.seen.copy_(0.9 * s.seen + 0.1 * x.mean((0, 2, 3)))
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def ever_new(s, x):
        for _ in range(5):
            s.seen = s.seen * 1.0
            s.p(x)
        return x + s.seen.view(1, -1, 1, 1)

    @staticmethod
    def memory(s, x):
        y = x if s.last is None else x + s.p(s.last)
        s.last = x
        return y

    @staticmethod
    def counted(s, x):
        s.calls += 1
        return s.p(x) if s.calls > 2 else x


def state(form, prunable, frozen=None):
    return Case(lambda: State(form), IMAGE, set(prunable.split()), frozen or {}, [IMAGE, IMAGE])


class Graph(nn.Module):
    """Rows of a sparse matrix say which nodes are neighbours."""

    def __init__(self, sparse_output=False):
        super().__init__()
        self.a, self.b, self.sparse = nn.Linear(6, 8), nn.Linear(8, 3), sparse_output
        self.register_buffer("edges", torch.eye(5).to_sparse())

    def forward(self, x):
        x = F.relu(torch.sparse.mm(self.edges, self.a(x)))
        x = self.b(torch.sparse.mm(self.edges, x))
        return x.to_sparse() if self.sparse else x


def attention(*arguments, **more):
    return lambda: nn.MultiheadAttention(12, 3, *arguments, batch_first=True, **more)


def inference(s, x):
    with torch.inference_mode():
        y = s.p(x)
        y += 1
        y[:, :].mul_(2)
    return x + y


def of_dtype(dtype):
    return Case(
        lambda: Net(lambda s, x: s.p(x), p=same()).to(dtype),
        IMAGE.to(dtype),
        {"a", "b", "p"},
        others=[image(3).to(dtype)],
    )


def strange(layer, weight):
    layer.weight = nn.Parameter(weight)
    return layer


LIBRARY = {
    "RNN": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.RNN(12, 12, batch_first=True)),
    "LSTM": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.LSTM(12, 12, batch_first=True)),
    "GRU": line(lambda s, x: s.p(x)[0], "b", p=lambda: nn.GRU(12, 12, batch_first=True)),
    "GRU both ways": line(
        lambda s, x: s.p(x)[0],
        "b",
        wide=24,
        p=lambda: nn.GRU(12, 12, batch_first=True, bidirectional=True),
    ),
    "packed LSTM": line(
        packed,
        "b",
        "_pack_padded_sequence",
        others=(),
        p=lambda: nn.LSTM(12, 12, batch_first=True),
    ),
    "GRU cell": line(over_time, None, p=lambda: nn.GRUCell(12, 12)),
    "own cell": line(own_cell, "a b", p=wide, q=wide),
    "bilinear": line(lambda s, x: s.p(x, x), "b", p=lambda: nn.Bilinear(12, 12, 12)),
    "attention": line(lambda s, x: x + s.p(x, x, x)[0], None, p=attention()),
    "attention with biases": line(
        lambda s, x: x + s.p(x, x, x)[0], None, p=attention(add_bias_kv=True, add_zero_attn=True)
    ),
    "encoder": line(
        lambda s, x: s.p(x),
        None,
        p=lambda: nn.TransformerEncoderLayer(12, 3, 24, batch_first=True),
    ),
    "decoder": line(
        lambda s, x: s.p(x, x),
        None,
        p=lambda: nn.TransformerDecoderLayer(12, 3, 24, batch_first=True),
    ),
    "RMS norm": line(lambda s, x: s.p(x), "b", p=lambda: nn.RMSNorm(12)),
    "one group of channels": net(lambda s, x: s.p(x), "b", p=lambda: nn.GroupNorm(1, 8)),
    "norm of everything": net(
        lambda s, x: s.p(x), "b", "over several axes", p=lambda: nn.LayerNorm([8, 8, 8])
    ),
    "norm of positions": net(lambda s, x: s.p(x), "a b", p=lambda: nn.LayerNorm([8, 8])),
    "circular": net(
        lambda s, x: s.p(x), None, p=lambda: nn.Conv2d(8, 8, 3, 1, 1, 1, 1, True, "circular")
    ),
    "grouped transposed": net(
        lambda s, x: s.p(x),
        "b",
        "grouped transposed convolution",
        p=lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=2),
    ),
    "bag of embeddings": line(
        lambda s, x: x + s.p(torch.tensor([[1, 2]])),
        "b",
        CONSTANT,
        p=lambda: nn.EmbeddingBag(5, 12),
    ),
    "lazy layer that has run": line(lambda s, x: s.p(x), "a b p", p=lambda: ran(nn.LazyLinear(12))),
    "bfloat16": of_dtype(torch.bfloat16),
    "half": of_dtype(torch.half),
    "float64": of_dtype(torch.double),
    "sparse": Case(Graph, TOKENS[0], set(), {"a": "aten._sparse_addmm"}),
    "sparse output": Case(lambda: Graph(True), TOKENS[0], set(), {"b": "aten._to_sparse"}),
    "state in place": state("in_place", "a b"),
    "state assigned": state("assigned", "a b"),
    "state copied": state("copied", "a b"),
    "state ever new": state("ever_new", "a b p"),
    "memory of the last input": state("memory", "b"),
    "counts its calls": state("counted", "a b"),
    "weights not contiguous": net(
        lambda s, x: s.p(x),
        "a b p",
        p=lambda: strange(same(), torch.randn(3, 3, 8, 8).permute(2, 3, 0, 1)),
    ),
    "channels last": net(
        lambda s, x: s.p(x), "a b p", p=lambda: same().to(memory_format=torch.channels_last)
    ),
    "no_grad": net(lambda s, x: x + torch.no_grad()(s.p)(x), "a b", p=same),
    "inference mode": net(inference, "a b", p=same),
    "vmap": net(lambda s, x: torch.vmap(lambda v: s.p(v[None])[0])(x), "a b p", p=same),
    "called as a function": net(
        lambda s, x: torch.func.functional_call(s.p, {"weight": s.p.weight * 2}, (x,)),
        "a b p",
        p=same,
    ),
    "checkpoint": net(lambda s, x: checkpoint(s.p, x, use_reentrant=False), "a b p", p=same),
    "number of a mean": net(lambda s, x: x * x.mean().item(), "b", "takes a mean over channels"),
    "list of means": net(
        lambda s, x: x * torch.tensor(x.mean((0, 2, 3)).tolist()).view(-1, 1, 1), "b", CONSTANT
    ),
    "through NumPy": net(
        lambda s, x: torch.from_numpy(x.numpy()[:, ::-1].copy()), "b", "the slim network fails"
    ),
    "without layers": Case(nn.ReLU, IMAGE, set()),
    "only its output": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), IMAGE, set(), {"1": OUTPUT}
    ),
}


def ran(layer):
    layer(TOKENS.repeat(1, 1, 2))
    return layer


@pytest.mark.parametrize("name", [n for n in LIBRARY if n != "without layers"])
def test_modules_of_the_library_precision_and_state(name):
    check(LIBRARY[name])


def test_a_model_without_parameters():
    assert pk.trace(nn.ReLU(), IMAGE).groups == ()


def test_a_dynamically_quantized_layer_stays():
    make = torch.ao.quantization.quantize_dynamic
    model = quietly(make, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), {"2"})
    (group,) = (g for g in pk.trace(model, TOKENS).groups if g.id == "0")
    assert "quantized.linear_dynamic in 2 (Linear)" in group.reason
