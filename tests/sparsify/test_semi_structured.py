"""Two of four weights, compressed."""

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.support.errors import ModelError, UsageError
from support.iee_loop import copied


def wide():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 2), nn.Flatten(), nn.Linear(32, 64), nn.Linear(64, 12), nn.Linear(12, 32)
    )


def test_compressed_two_of_four_weights(monkeypatch):
    """torch's own needs CUDA; what stands in for it refuses the shapes that it refuses."""
    model = wide()
    sparse = pk.sparsify.Static(model, pattern="2:4", dense=())
    with pytest.raises(UsageError, match=r"\(2: .*cpu is not supported! Only CUDA tensors"):
        pk.sparsify.semi_structured(model, sparse.plan)
    taken = []

    def compress(weight):
        if weight.shape[0] % 16 or weight.shape[1] % 16:
            raise RuntimeError("Both dimensions must be a multiple of (16, 16)")
        taken.append(weight)
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
    before = copied(model.state_dict())
    assert pk.sparsify.semi_structured(model, sparse.plan) == ["2"]
    assert [tuple(weight.shape) for weight in taken] == [(64, 32)]
    assert not model[2].weight.requires_grad
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    other = wide()
    plan = pk.sparsify.Static(other, 0.5, dense=()).plan
    with pytest.raises(UsageError, match="the plan's pattern is unstructured"):
        pk.sparsify.semi_structured(other, plan)
    plan = sparse.plan
    with torch.no_grad():
        model[4].weight.fill_(1.0)
    with pytest.raises(ModelError, match="layer 4 has 384 weights that are not zero"):
        pk.sparsify.semi_structured(model, plan)
