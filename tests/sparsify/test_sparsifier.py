"""Sparse training at every step: counts, zeros, frozen parts, what it needs."""

import math

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.networks import zeros
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import UsageError
from support.iee_loop import copied
from support.sparse_loop import METHODS, SHORT, Loop, batch, net
from support.sparse_training import ALL


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize("method", ALL)
def test_counts_are_conserved_and_zeros_exact_at_every_step(method, ranking, pattern):
    sparsity = None if pattern == "2:4" else 0.8
    loop = Loop(method, sparsity, ranking=ranking, pattern=pattern)
    sparse, total = loop.sparse, sum(loop.sparse.target)
    seen = set()
    while loop.done < loop.steps:
        seen.add(sparse.stage)
        loop.step()
        masks = sparse.masks
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        if sparse.stage in ("train", "final") and method != "gmp":
            assert sum(kept.values()) == total
            assert ranking == "global" or [*kept.values()] == sparse.target
            assert all(zeros.fits(mask, sparse.pattern) for mask in masks.values())
        if method == "gmp":
            assert sum(kept.values()) >= total
        assert min(kept.values()) >= 1
        if sparse.stage != "explore":
            for name, mask in masks.items():
                weight = loop.weight(name)
                assert not weight[~mask].any(), (name, loop.done)
                for value in loop.optimizer.state[weight].values():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        assert not value[~mask].any()
        else:
            assert method == "iee"
    assert sparse.stage == "final"
    assert sum(layer.kept for layer in sparse.plan.sparse) == total
    verify(loop.model, sparse.plan)
    assert seen >= ({"train", "improve", "explore", "final"} if method == "iee" else {"final"})
    if method in ("set", "rigl", "iee"):
        assert len(sparse.history) >= 3
        assert all(row["grown"] > 0 for row in sparse.history[:3])  # fewer and fewer


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "nadam"])
def test_inactive_weights_have_no_influence(optimizer):
    loop = Loop("rigl", optimizer=optimizer)
    for _ in range(10):
        loop.step()
        assert all(not loop.weight(n)[~m].any() for n, m in loop.sparse.masks.items())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"criterion": pk.Magnitude},
            r"the class Magnitude; give an instance of it, Magnitude\(\)",
        ),
        ({"pattern": (2, 4)}, r"cannot read pattern '\(2, 4\)'"),
        ({"pattern": None}, "cannot read pattern 'None'"),
        ({"schedule": 60}, "rigl needs a schedule"),
    ],
)
def test_arguments_of_a_wrong_type(options, problem):
    arguments = {"sparsity": 0.5, "schedule": SparsitySchedule(40, **SHORT), **options}
    with pytest.raises(UsageError, match=problem):
        pk.sparsify.RigL(net(), **arguments)


@pytest.mark.parametrize("method", ALL)
def test_weights_changed_from_outside_are_refused(method):
    loop = Loop(method, 0.8)
    held = copied(loop.model.state_dict())
    full = {n: torch.ones_like(v) if v.ndim > 1 else v for n, v in held.items()}
    loop.model.load_state_dict(full)
    if method == "gmp":  # which begins dense
        loop.step()
        return
    with pytest.raises(UsageError, match="inactive weights of 3 are no longer zero: they were lo"):
        loop.step()
    with pytest.raises(UsageError, match="no longer zero"):
        _ = loop.sparse.plan
    loop.model.load_state_dict(held)
    loop.step()
    verify(loop.model, loop.sparse.plan)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("iee", {"sample": "gradient", "reactivate": 0.5, "source": "mru", "grow": "mru"}),
        ("rigl", {}),
        ("set", {}),
        ("gmp", {}),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_bfloat16_weights(method, settings, when):
    model, images = net(), torch.randn(8, 4, 6, 6).bfloat16()
    if when == "before":
        model.bfloat16()
    schedule = SparsitySchedule(20, every=2, explore=2 if method == "iee" else None, **settings)
    criterion = "taylor" if method == "rigl" else "magnitude"
    sparse = METHODS[method](model, 0.8, schedule, criterion=criterion, start="scores")
    model.bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(20):
        model(images).float().square().mean().backward()
        sparse.step(optimizer)
    assert sparse.history
    verify(model, sparse.plan)


def test_a_compiled_model_is_the_model_that_it_was_compiled_from():
    plain = net()
    compiled = torch.compile(plain, backend="eager")
    sparse = pk.sparsify.RigL(compiled, 0.8, SparsitySchedule(6, every=1))
    optimizer = torch.optim.SGD(compiled.parameters(), 0.1)
    for _ in range(6):
        compiled(torch.randn(4, 4, 6, 6)).square().mean().backward()
        sparse.step(optimizer)
    assert [layer.name for layer in sparse.plan.layers] == ["0", "3", "8", "10"]
    verify(plain, sparse.plan)


def test_gradients_are_clipped_once_they_are_masked():
    """Those of masked weights, and of frozen ones while exploring, are no part of the norm."""
    for stage in ("train", "explore"):
        loop = Loop("iee", 0.9, optimizer="plain").until(stage)
        before = copied(loop.model.state_dict())
        images, labels = batch(loop.done)
        nn.functional.cross_entropy(loop.model(images), labels).backward()
        loop.sparse.step(loop.optimizer, clip_norm=1e-2)
        moved = sum(
            float(((value.detach() - before[name]) ** 2).sum())
            for name, value in loop.model.named_parameters()
        )
        assert math.sqrt(moved) == pytest.approx(1e-2 * 0.05, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0}, "above 0 and below 1"),
        ({"sparsity": 1}, "above 0 and below 1"),
        ({"sparsity": None}, "give `sparsity`"),
        ({"sparsity": 0.9999}, "ask for at most"),
        ({"sparsity": 0.5, "pattern": "2:5"}, "2:5 does not divide layer 3"),
        ({"ranking": "all"}, "`ranking` must be layer or global"),
        ({"start": "zero"}, "`start` must be random or scores"),
        ({"distribution": "even"}, "`distribution` must be erk or uniform"),
        ({"criterion": pk.FPGM()}, "criterion 'fpgm' scores channels only"),
        ({"steps": 6}, "one cycle of iee takes 8 steps, and exchanges end after 5"),
    ],
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(UsageError, match=message):
        Loop("iee", **options)


def test_the_optimizer_must_be_the_models():
    loop = Loop("rigl")
    with pytest.raises(UsageError, match="the optimizer lacks the weight of 3"):
        loop.sparse.step(torch.optim.SGD(net().parameters(), 0.1))
    loop.run(1)
    with pytest.raises(UsageError, match="begun with another optimizer"):
        loop.sparse.step(torch.optim.SGD(loop.model.parameters(), 0.1))


def test_momentum_of_a_dense_training_is_cleared_where_weights_go():
    loop = Loop("static")
    for parameter in loop.model.parameters():
        loop.optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    loop.run(1)
    for name, mask in loop.sparse.masks.items():
        assert not loop.weight(name)[~mask].any()


def test_a_scaler_of_mixed_precision_is_unscaled_stepped_and_updated():
    plain, scaled = Loop("rigl"), Loop("rigl")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(12):
        plain.step()
        images, labels = batch(scaled.done)
        scaler.scale(nn.functional.cross_entropy(scaled.model(images), labels)).backward()
        scaled.sparse.step(scaled.optimizer, scaler=scaler)
        scaled.done += 1
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(scaled.model.state_dict()[name], value, atol=1e-6), name
    before = copied(scaled.model.state_dict())
    images, labels = batch(scaled.done)
    scaler.scale(nn.functional.cross_entropy(scaled.model(images), labels)).backward()
    scaled.weight("10").grad[0] = math.inf
    scaled.sparse.step(scaled.optimizer, scaler=scaler)
    for name, parameter in scaled.model.named_parameters():
        assert torch.equal(parameter, before[name]), name  # the step is left out
    assert scaler.get_scale() == 2.0**9
