"""Scores: averages over a stage, overflows, frozen layers."""

import copy
import math

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.sparsify.scoring import finite
from prunekit.support.errors import TrainingError, UsageError
from support.sparse_loop import Loop, batch


def test_taylor_scores_are_averages_over_the_stage():
    loop = Loop("set", criterion=pk.Taylor(), every=3).run(2)
    sums = [part.clone() for part in loop.sparse._scorer.sums]
    images, labels = batch(loop.done)
    nn.functional.cross_entropy(loop.model(images), labels).backward()
    found = [loop.weight(n).detach() * loop.weight(n).grad for n in loop.sparse.masks]
    loop.sparse.after_backward(loop.model, 2)
    for before, after, term in zip(sums, loop.sparse._scorer.sums, found, strict=True):
        assert torch.allclose(after, before + term.abs())
    assert loop.sparse._scorer.added == 3


def test_a_layer_frozen_midway_has_no_taylor_scores():
    loop = Loop("set", criterion=pk.Taylor(), every=9).run(2)
    loop.weight("3").requires_grad_(False)
    loop.optimizer.zero_grad(set_to_none=True)
    with pytest.raises(UsageError, match=r"no gradient for 3, which Taylor .* is not trained"):
        loop.step()


def test_gradients_that_overflow_put_an_exchange_off():
    loop = Loop("rigl").run(2)
    images, labels = batch(loop.done)
    nn.functional.cross_entropy(loop.model(images), labels).backward()
    loop.weight("3").grad[0] = math.inf
    before = copy.deepcopy(loop.model.state_dict())
    loop.sparse.after_backward(loop.model, 2)
    loop.optimizer.zero_grad()  # as mixed precision leaves the step out
    loop.sparse.after_step(loop.model, loop.optimizer, 2)
    assert not loop.sparse.history
    assert all(torch.equal(v, before[n]) for n, v in loop.model.state_dict().items())
    loop.done += 1
    loop.step()
    assert len(loop.sparse.history) == 1
    assert finite([torch.ones(70_000, dtype=torch.float16)])  # whose sum is beyond the type
    assert not finite([torch.tensor([1.0, math.inf], dtype=torch.float16)])
    loop.sparse._state.left, loop.sparse._state.waited = 1, 16
    loop.weight("3").grad = torch.full_like(loop.weight("3"), math.nan)
    with pytest.raises(TrainingError, match="no finite gradients in 16 steps"):
        loop.sparse.after_backward(loop.model, 3)
