"""Which weights can be sparse, are shared, computed, or read without a call."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit.networks.weight_layers import find_layers, layer_macs
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import ModelError, UsageError
from support.sparse_loop import Loop, net

# --- cost


def test_macs_and_work():
    model = net()
    macs = layer_macs(model, torch.randn(1, 4, 6, 6))
    assert macs == {"0": 36 * 8 * 36, "3": 36 * 12 * 72, "8": 12 * 16, "10": 64}
    static = Loop("static", 0.8).run()
    share = (10368 + sum(d.density * macs[d.name] for d in static.sparse.plan.sparse)) / sum(
        macs.values()
    )
    assert static.sparse.work == pytest.approx(40 * share)
    rigl = Loop("rigl", 0.8).run()
    updates = len(rigl.sparse.history)
    assert rigl.sparse.work == pytest.approx(40 * share + updates * (1 - share) / 3)
    iee = Loop("iee", 0.8, fraction=1e-6).run()
    explored = 3 * len(iee.sparse.history)
    assert iee.sparse.work == pytest.approx((40 - explored) * share + explored)
    half = Loop("iee", 0.8, fraction=1e-6, reactivate=0.5).run()
    assert half.sparse.work < iee.sparse.work
    with pytest.raises(UsageError, match="needs an `example`"):
        _ = pk.sparsify.Static(net(), 0.5, SparsitySchedule(1)).work


class Functional(nn.Module):
    """Reads the weight of a layer without calling it, as attentions do; the head is first."""

    def __init__(self):
        super().__init__()
        self.head, self.spare = nn.Linear(8, 3), nn.Linear(8, 8)
        self.qkv, self.stem = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x):
        x = self.stem(x)
        if self.training:
            x = x + self.spare(x)
        return self.head(F.linear(F.linear(x, weight=self.qkv.weight), self.qkv.weight))


def test_weights_that_are_read_without_a_call_count(capsys):
    model, example = Functional(), torch.randn(2, 5, 4)
    macs = layer_macs(model, example)
    assert macs == {"stem": 10 * 32, "qkv": 2 * 10 * 64, "head": 10 * 24, "spare": 0}
    assert [*macs] == ["stem", "qkv", "head", "spare"]
    sparse = pk.sparsify.Static(model, 0.5, distribution="uniform", example=example)
    assert [layer.name for layer in sparse.plan.layers if layer.dense] == ["stem"]
    assert (
        "note: no FLOPs of spare are counted: not called on the example" in capsys.readouterr().err
    )
    with pytest.raises(ModelError, match="Functional refuses input 2x5x3: RuntimeError"):
        pk.sparsify.Static(model, 0.5, example=torch.randn(2, 5, 3))


# --- which layers


def test_weights_that_are_computed_may_stay_dense():
    model = net()
    nn.utils.parametrizations.weight_norm(model[8])
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[10])
    with pytest.raises(UsageError, match=r"--dense 8\), .*\(torch.nn.utils.parametrize.remove_p"):
        find_layers(model, ("first", "10"))
    with pytest.raises(UsageError, match=r"--dense 10\), .*\(torch.nn.utils.remove_weight_norm"):
        find_layers(model, ("first", "8"))
    example = torch.randn(1, 4, 6, 6)
    sparse = pk.sparsify.Static(model, 0.5, dense=("8", "10"), example=example)
    assert [layer.name for layer in sparse.plan.layers] == ["0", "3"]
    assert layer_macs(model, example)["8"] == 12 * 16
    sparse.step(torch.optim.SGD(model.parameters(), 0.1))
    assert 0 < sparse.work < 1


def test_layers_that_stay_dense():
    model = net()
    assert [la.name for la in find_layers(model) if la.dense] == ["0"]
    assert [la.name for la in find_layers(model, ()) if la.dense] == []
    assert [la.name for la in find_layers(model, ("1?", "first")) if la.dense] == ["0", "10"]
    inside = nn.ModuleDict({"body": net(), "fc": nn.Linear(2, 2)})  # a module stands for its layers
    found = [la.name for la in find_layers(inside, "body") if not la.dense]
    assert found == ["fc"]
    model[8].weight.requires_grad_(False)
    assert [la.name for la in find_layers(model, ("3",)) if la.dense] == ["3", "8"]


def test_layers_that_cannot_be_used():
    with pytest.raises(UsageError, match="`dense` must be names of layers, not 3"):
        find_layers(net(), 3)
    with pytest.raises(UsageError, match="`freeze` must be True or False, not 'no'"):
        SparsitySchedule(10, freeze="no")
    with pytest.raises(UsageError, match="unknown criteria name 'size'; known: "):
        pk.sparsify.Static(net(), 0.5, criterion="size")
    with pytest.raises(UsageError, match="'fc', which matches no layer; layers: 0, 3, 8, 10"):
        find_layers(net(), ("fc",))
    with pytest.raises(UsageError, match="every layer of Sequential is dense"):
        find_layers(net(), ("*",))
    with pytest.raises(ModelError, match="no linear or convolutional layer"):
        find_layers(nn.ReLU())
    frozen = net().requires_grad_(False)
    with pytest.raises(UsageError, match=r"no weight of Sequential is trained \(`requires_grad`"):
        find_layers(frozen)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match=r"0\.weight is computed by a parametrisation"):
        find_layers(normed, ())
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet"):
        find_layers(nn.Sequential(nn.LazyLinear(4)))
    assert not any(layer.dense for layer in find_layers(net(), None))


class Standardised(nn.Conv2d):
    """Zeros of its weight are none of what it multiplies by."""

    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(images, weight, self.bias)


class Padded(nn.Conv2d):
    def forward(self, images):
        return self._conv_forward(nn.functional.pad(images, (1, 1, 1, 1)), self.weight, self.bias)


def test_layers_that_compute_their_weight_cannot_be_sparse():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Padded(4, 4, 3), Standardised(4, 4, 3))
    sparse, example = {"sparsity": 0.5, "distribution": "uniform"}, torch.randn(1, 3, 8, 8)
    with pytest.raises(ModelError, match=r"2 \(Standardised\) computes .* \(--dense 2\)"):
        pk.sparsify.Static(model, **sparse, example=example)
    kept = pk.sparsify.Static(model, **sparse, dense=("first", "2"), example=example)
    assert [*kept.masks] == ["1"]


def test_layers_that_never_run_are_not_in_the_way():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.other = net(), Standardised(4, 4, 3)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, images):
            logits = self.body(images)[:, None]
            return self.attention(logits, logits, logits)[0]

    sparse = pk.sparsify.Static(Heads(), 0.5, example=torch.randn(1, 4, 6, 6))
    assert {"other", "attention.out_proj"} < {*sparse.masks}


def test_shared_weights_are_masked_once_and_other_convolutions_too():
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16))
    model[3].weight = model[2].weight
    example = torch.randn(1, 4, 4)
    sparse = pk.sparsify.Static(
        model, 0.5, SparsitySchedule(1), dense=(), distribution="uniform", example=example
    )
    assert [*sparse.masks] == ["0", "2"]
    verify(model, sparse.plan)
    sparse.count_step()
    assert sparse.work == pytest.approx(0.5)  # of both layers that have the weight
    assert [la.dense for la in find_layers(model, ("3",))] == [False, True]
    volume = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 4, 3))
    sparse = pk.sparsify.Static(volume, 0.9, SparsitySchedule(1))
    assert int(volume[1].weight.count_nonzero()) == round(0.1 * 432)


def test_what_is_not_counted_or_becomes_sparse_by_another_name_is_said(capsys):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(16, 8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.head = nn.Linear(8, 16)
            self.head.weight = self.embedding.weight

    find_layers(Tied(), ())
    told = capsys.readouterr().err
    assert "embedding has the weight of head, and becomes sparse with it" in told
    assert "the queries, keys and values of attention stay dense" in told
