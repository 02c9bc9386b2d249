"""Each method: what it drops, grows, and draws."""

import copy

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import UsageError
from support.sparse_loop import SHORT, Loop, batch, net


def test_rigl_grows_the_largest_gradients_at_zero_without_momentum():
    loop = Loop("rigl").run(2)
    before = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
    images, labels = batch(loop.done)
    nn.functional.cross_entropy(loop.model(images), labels).backward()
    gradients = {n: loop.weight(n).grad.abs().clone() for n in before}
    loop.sparse.step(loop.optimizer)
    grown = 0
    for name, mask in loop.sparse.masks.items():
        new, never = mask & ~before[name], ~mask & ~before[name]
        assert not loop.weight(name)[new].any()
        assert not loop.optimizer.state[loop.weight(name)]["momentum_buffer"][new].any()
        if new.any() and never.any():
            assert gradients[name][new].min() >= gradients[name][never].max()
        grown += int(new.sum())
    assert grown


def test_dropped_weights_are_the_smallest():
    loop = Loop("set").run(2)
    before = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
    dense = copy.deepcopy(loop)
    dense.sparse._state.left = 99  # the same step without the exchange
    dense.step()
    loop.step()
    for name, mask in loop.sparse.masks.items():
        size = dense.weight(name).detach().abs()
        stayed = before[name] & mask & (loop.weight(name) != 0)  # not dropped and grown at once
        gone = before[name] & ~mask
        if gone.any():
            assert size[gone].max() <= size[stayed].min()


def test_set_draws_from_its_seed_alone():
    structures = [Loop("set", seed=seed).run().sparse.masks for seed in (1, 1, 2)]
    same = [all(torch.equal(structures[0][n], s[n]) for n in s) for s in structures[1:]]
    assert same == [True, False]


def test_a_trained_network_keeps_its_largest_weights():
    model = net()
    largest = {}
    for name in ("3", "8", "10"):
        largest[name] = dict(model.named_modules())[name].weight.detach().abs().clone()
    loop = Loop("static", 0.7, model=model, start="scores")
    for name, mask in loop.sparse.masks.items():
        rest = largest[name][~mask]  # none of a layer that erk fills
        assert not rest.numel() or largest[name][mask].min() >= rest.max()


def test_what_a_static_structure_is_chosen_by_and_needs():
    sparse = pk.sparsify.Static(net(), 0.5)  # no training, and so no schedule
    assert sparse.plan.sparsity == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="static chooses before any training, when taylor has no"):
        pk.sparsify.Static(net(), 0.5, criterion=pk.Taylor())
    with pytest.raises(UsageError, match="rigl needs a schedule"):
        pk.sparsify.RigL(net(), 0.5)


def test_the_base_of_all_methods_trains_nothing():
    with pytest.raises(UsageError, match="use Static, SET, RigL, GMP or IEE"):
        pk.sparsify.Sparsifier(net(), 0.5, SparsitySchedule(40, **SHORT))


@pytest.mark.parametrize("criterion", [pk.Taylor(), pk.TaylorWeight("square"), pk.Random()])
@pytest.mark.parametrize("method", ["rigl", "iee", "gmp"])
def test_other_criteria(method, criterion):
    loop = Loop(method, criterion=criterion).run()
    verify(loop.model, loop.sparse.plan)
    assert loop.sparse.plan.criterion == criterion.name
    assert loop.sparse.stage == "final"
