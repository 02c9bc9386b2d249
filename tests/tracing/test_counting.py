"""Products are counted to the layer whose weight they read, as torch itself counts them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunekit as pk


class Functions(nn.Module):
    """Uses its layers by their weights, in five ways."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1).flatten(2).transpose(1, 2)
        x = F.linear(x, self.a.weight, self.a.bias).relu()
        x = (x @ self.b.weight.t()).relu()
        x = torch.einsum("bnc,oc->bno", x, self.c.weight).relu()
        q, k = F.linear(x, self.d.weight[:4]), F.linear(x, self.d.weight[4:])
        return self.head(torch.cat([q, k], -1).mean(1))


class Windows(nn.Module):
    """Joins windows to the batch, and rows of all samples."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        n = x.shape[0]
        x = self.conv(x.unfold(3, 4, 4).permute(0, 3, 1, 2, 4).flatten(0, 1))
        x = self.a(x.flatten(2).transpose(1, 2)).relu()
        return self.b(x.reshape(-1, 8)).reshape(n, -1, 4).mean(1)


class Attends(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused, self.qkv, self.out = fused, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return self.out((((q @ k.transpose(-1, -2)) / 8**0.5).softmax(-1) @ v)[:, 0])


def by_torch(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return sum(counter.get_flop_counts()["Global"].values()) / 2 / len(x)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("model", [Functions(), Windows()], ids=["functions", "windows"])
def test_layers_are_counted_however_they_are_called(model, batch):
    x = torch.randn(batch, 3, 8, 8)
    graph = pk.trace(model.eval(), x)
    assert graph.macs({}) == by_torch(model, x)
    assert {layer.name for layer in graph.layers} == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert not any("not used" in note for note in graph.notes)


def test_a_plan_takes_off_what_torch_counts_less():
    model, x = Functions().eval(), torch.randn(1, 3, 8, 8)
    graph = pk.trace(model, x)
    plan = pk.ChannelPlan.random(graph, 0.5, 0)
    assert not plan.is_dense
    assert graph.macs(plan.widths) == by_torch(pk.slim(model, plan), x)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_products_of_activations_are_their_own(fused, batch):
    model, x = Attends(fused).eval(), torch.randn(batch, 6, 8)
    graph = pk.trace(model, x)
    assert graph.activation_macs == 2 * 6 * 6 * 8
    assert graph.macs({}) == 6 * 8 * (24 + 8)


def test_a_layer_that_nothing_reads_is_still_said_to_be_unused():
    class Idle(Windows):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(8, 8)

    assert any("idle" in note for note in pk.trace(Idle().eval(), torch.randn(1, 3, 8, 8)).notes)
