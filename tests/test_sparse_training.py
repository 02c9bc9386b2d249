"""Sparse training: exact counts, frozen parts, momentum, patterns, resumption, processes."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iee_loop import copied
from sparse_loop import METHODS, SHORT, Loop, batch, net, saved, went_on
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import prunekit as pk
from prunekit.core.density import Pattern
from prunekit.networks import zeros
from prunekit.networks.weight_layers import find_layers, layer_macs
from prunekit.sparsify import SparsitySchedule, choose, verify
from prunekit.sparsify.scoring import finite
from prunekit.support.errors import ModelError, TrainingError, UsageError
from prunekit.train import Data, TrainConfig, fit

ALL = sorted(METHODS)

# --- choosing


SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(SCORES, st.data())
def test_top_is_exact_and_prefers_earlier_ones(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    chosen = choose.top(scores, count)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert chosen.nonzero().flatten().tolist() == sorted(order[:count])


@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 4), (3, 8)]))
def test_blocks_lie_along_the_inputs(seed, nm):
    pattern = Pattern(*nm)
    scores = torch.rand(3, 16, 2, 3, generator=torch.Generator().manual_seed(seed))
    chosen = zeros.top_of_blocks(scores, pattern)
    for out, i, j in [(o, i, j) for o in range(3) for i in range(2) for j in range(3)]:
        for start in range(0, 16, pattern.m):
            block = chosen[out, start : start + pattern.m, i, j]
            values = scores[out, start : start + pattern.m, i, j]
            assert block.sum() == pattern.n
            assert values[block].min() >= values[~block].max()
    assert zeros.fits(chosen, pattern)
    one_more = chosen.clone()
    one_more[0, :, 0, 0] = True
    assert not zeros.fits(one_more, pattern)


# --- what holds at every step


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


@given(
    method=st.sampled_from(["set", "rigl", "iee", "gmp"]),
    sparsity=st.floats(0.3, 0.97),
    fraction=st.floats(0.01, 0.99),
    every=st.integers(1, 5),
    decay=st.sampled_from(["cosine", "exponential", "constant"]),
    ranking=st.sampled_from(["layer", "global"]),
    reactivate=st.floats(0.01, 1.0),
    sample=st.sampled_from(["random", "gradient"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_totals_hold_whatever_the_settings(method, sparsity, ranking, **options):
    loop = Loop(method, sparsity, ranking=ranking, steps=20, **options).run()
    assert sum(layer.kept for layer in loop.sparse.plan.sparse) == sum(loop.sparse.target)
    verify(loop.model, loop.sparse.plan)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "nadam"])
def test_inactive_weights_have_no_influence(optimizer):
    loop = Loop("rigl", optimizer=optimizer)
    for _ in range(10):
        loop.step()
        assert all(not loop.weight(n)[~m].any() for n, m in loop.sparse.masks.items())


# --- IEE's exploration


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "plain"])
@pytest.mark.parametrize("options", [{}, {"reactivate": 0.3}, {"momentum": "kept"}])
def test_exploration_leaves_everything_active_as_it_was(optimizer, options):
    loop = Loop("iee", optimizer=optimizer, **options).until("explore")
    masks = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
    active = copy.deepcopy(loop.sparse.active).eval()
    image = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    answer, before = active(image), loop.state()
    held = copy.deepcopy(loop.sparse._exploration.held)
    moved = 0
    while loop.sparse.stage == "explore":
        loop.step()
        if loop.sparse.stage != "explore":
            break
        now = loop.state()
        for name, value in before.items():
            layer = name.removesuffix(".weight")
            if layer in masks:
                on = masks[layer]
                assert torch.equal(now[name][on], value[on])
                moved += int((now[name][~on] != 0).sum())
            elif "running" not in name and "num_batches" not in name and " of " not in name:
                assert torch.equal(now[name], value), name
        assert torch.equal(loop.sparse.active.eval()(image), answer)
    assert moved
    after, weights = loop.state(), loop.sparse._sparse.names
    for name, value in before.items():
        layer = name.rpartition(" of ")[2].removesuffix(".weight")
        if layer not in masks:  # norms with their statistics, biases, dense layers, their momentum
            assert torch.equal(after[name], value), name
    for i, layer in enumerate(weights):
        entry = loop.optimizer.state[loop.weight(layer)]
        for key, value in held[i].items():
            if isinstance(value, torch.Tensor):
                on = masks[layer] if value.ndim else ...
                assert torch.equal(entry[key][on], value[on]), (layer, key)


def test_grown_weights_take_over_what_they_explored_and_sleepers_remember():
    loop = Loop("iee").until("explore")
    while loop.sparse._state.left > 1:
        loop.step()
    left = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
    loop.step()
    assert loop.sparse.stage == "train"
    asleep = dict(zip(loop.sparse._sparse.names, loop.sparse._exploration.asleep, strict=True))
    grown = 0
    for name, mask in loop.sparse.masks.items():
        new = mask & ~left[name]
        weight = loop.weight(name)
        assert torch.equal(weight[new], asleep[name][new])
        others = ~mask & ~left[name]
        assert asleep[name][others].any()  # explored, and put to sleep
        assert not weight[others].any()
        # the grown are the largest of what explored
        if new.any() and others.any():
            assert asleep[name][new].abs().min() >= asleep[name][others].abs().max()
        grown += int(new.sum())
        state = loop.optimizer.state[weight]
        assert not state["momentum_buffer"][new].any()
    assert grown == loop.sparse.history[-1]["grown"]
    remembered = {name: values.clone() for name, values in asleep.items()}
    loop.until("explore")  # and begins again from there
    for name, mask in loop.sparse.masks.items():
        assert torch.equal(loop.weight(name)[~mask], remembered[name][~mask])


def test_exploration_starts_from_what_the_source_says():
    for source in ("explored", "zero", "mru"):
        loop = Loop("iee", source=source, improve=0)
        while loop.sparse._state.left > 1:
            loop.step()
        begin = {n: loop.weight(n).detach().clone() for n in loop.sparse.masks}
        before = {n: m.clone() for n, m in loop.sparse.masks.items()}
        loop.step()
        assert loop.sparse.stage == "explore"
        dropped = 0
        for name, mask in loop.sparse.masks.items():
            gone = before[name] & ~mask
            dropped += int(gone.sum())
            value = loop.weight(name)[gone]
            if source != "mru":
                assert not loop.weight(name)[~mask].any()
            elif gone.any():  # the value it had, after one more step
                assert torch.allclose(value, begin[name][gone], atol=0.1)
                assert value.any()
        assert dropped


def explored(**options):
    """A loop whose first exploration is just over, and what was active in it."""
    loop = Loop("iee", **options).until("explore")
    while loop.sparse.stage == "explore":
        left = {name: mask.clone() for name, mask in loop.sparse.masks.items()}
        loop.step()
    return loop, left


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("momentum", ["kept", "zero"])
def test_momentum_of_what_explores(momentum, freeze):
    loop, left = explored(momentum=momentum, freeze=freeze)
    grown, slept = 0, loop.sparse._exploration.slept
    for name, mask in loop.sparse.masks.items():
        state = loop.optimizer.state[loop.weight(name)]["momentum_buffer"]
        grown += int(state[mask & ~left[name]].count_nonzero())
        assert state[left[name]].any()
        assert not state[~mask].any()
    assert bool(grown) == (momentum == "kept") == bool(slept)
    for entry, on in zip(slept, left.values(), strict=bool(slept)):
        assert entry["momentum_buffer"][~on].any()
        assert not entry["momentum_buffer"][on].any()  # weight decay builds some up on frozen ones
    loop.until("explore")
    for entry, (name, on) in zip(slept, loop.sparse.masks.items(), strict=bool(slept)):
        state, inactive = loop.optimizer.state[loop.weight(name)], ~on & ~left[name]
        kept = entry["momentum_buffer"][inactive]
        assert torch.equal(state["momentum_buffer"][inactive], kept)


def test_grown_weights_may_take_their_most_recent_values_back():
    loop = Loop("iee", grow="mru", fraction=0.6)
    given = net().state_dict()
    recent = {name: given[f"{name}.weight"].clone() for name in loop.sparse.masks}
    back = 0
    while loop.sparse.stage != "final":
        before, masks = copied(loop.model.state_dict()), copied(loop.sparse.masks)
        stage = loop.sparse.stage
        loop.step()
        for name, mask in loop.sparse.masks.items():
            if stage == "train" and loop.sparse.stage == "improve":
                gone = masks[name] & ~mask  # with the values after the step, not those before it
                recent[name][gone] = loop.sparse._exploration.recent[
                    loop.sparse._sparse.names.index(name)
                ][gone]
                was = before[f"{name}.weight"][gone]
                assert torch.allclose(recent[name][gone], was, atol=0.2)
            if stage == "explore" and loop.sparse.stage != "explore":
                new = mask & ~masks[name]
                assert torch.equal(loop.weight(name)[new], recent[name][new])
                back += int(new.sum())
    assert back


def test_exploration_of_no_steps_has_no_gradients_to_grow_by():
    options = {"source": "mru", "explore": 0}
    with pytest.raises(UsageError, match="`explore` of 0 leaves taylor no gradients"):
        Loop("iee", criterion=pk.Taylor(), **options)
    verify((loop := Loop("iee", criterion=pk.Random(), **options).run()).model, loop.sparse.plan)


def test_ablations_run():
    for options in (
        {"freeze": False},
        {"improve": 0},
        {"grow": "zero"},
        {"source": "zero"},
        {"source": "mru", "explore": 0},
        {"freeze": False, "reactivate": 0.5},
    ):
        loop = Loop("iee", **options).run()
        verify(loop.model, loop.sparse.plan)
        assert loop.sparse.stage == "final"


def test_exchanges_end_at_the_overlap_asked_for():
    whole = Loop("iee", fraction=0.05, stop_iou=1.0).run()
    early = Loop("iee", fraction=0.05, stop_iou=0.5).run()
    assert len(early.sparse.history) == 1 < len(whole.sparse.history)
    assert early.sparse.history[0]["iou"] >= 0.5
    verify(early.model, early.sparse.plan)
    own, other = (Loop(method, fraction=0.05).run().sparse.history for method in ("iee", "set"))
    assert own[-1]["iou"] >= 0.9 > own[-2]["iou"] if len(own) > 1 else own[-1]["iou"] >= 0.9
    assert len(own) < len(whole.sparse.history)
    assert sum(row["iou"] >= 0.9 for row in other) > 1  # by default IEE's alone end so


# --- what each method does


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


def test_a_structure_is_a_function_of_scores_alone():
    torch.manual_seed(5)
    first = Loop("rigl").run()
    torch.manual_seed(6)
    torch.randn(7)
    second = Loop("rigl").run()
    for name, mask in first.sparse.masks.items():
        assert torch.equal(mask, second.sparse.masks[name])
        assert torch.equal(first.weight(name), second.weight(name))


def test_gmp_begins_dense_and_follows_the_cubic_schedule():
    loop = Loop("gmp", steps=40, every=4)
    assert all(mask.all() for mask in loop.sparse.masks.values())
    updates, cycle = 9, 0
    sizes = [loop.weight(n).numel() for n in loop.sparse.masks]
    while loop.done < 40:
        loop.step()
        if len(loop.sparse.history) > cycle:
            cycle += 1
            left = (1 - cycle / updates) ** 3
            wanted = [
                t + round((s - t) * left) for t, s in zip(loop.sparse.target, sizes, strict=True)
            ]
            assert loop.sparse._masks.counts() == wanted
    assert cycle == updates


def test_a_trained_network_keeps_its_largest_weights():
    model = net()
    largest = {}
    for name in ("3", "8", "10"):
        largest[name] = dict(model.named_modules())[name].weight.detach().abs().clone()
    loop = Loop("static", 0.7, model=model, start="scores")
    for name, mask in loop.sparse.masks.items():
        rest = largest[name][~mask]  # none of a layer that erk fills
        assert not rest.numel() or largest[name][mask].min() >= rest.max()


def test_globally_the_largest_weights_of_all_layers_stay():
    model = net()
    with torch.no_grad():
        model[3].weight *= 100
    size = {n: model.get_submodule(n).weight.detach().abs().clone() for n in ("3", "8", "10")}
    loop = Loop("static", 0.7, model=model, start="scores", ranking="global")
    masks = loop.sparse.masks
    kept = torch.cat([size[name][mask] for name, mask in masks.items()])
    gone = torch.cat([size[name][~mask] for name, mask in masks.items()])
    assert len(kept) == sum(loop.sparse.target)
    above = (kept >= gone.max()).sum()
    assert above >= len(kept) - len(masks)  # one of each layer stays, whatever it scores
    assert loop.sparse._masks.counts() != loop.sparse.target
    assert masks["3"].sum() > 10 * masks["8"].sum()


def test_what_a_static_structure_is_chosen_by_and_needs():
    sparse = pk.sparsify.Static(net(), 0.5)  # no training, and so no schedule
    assert sparse.plan.sparsity == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="static chooses before any training, when taylor has no"):
        pk.sparsify.Static(net(), 0.5, criterion=pk.Taylor())
    with pytest.raises(UsageError, match="rigl needs a schedule"):
        pk.sparsify.RigL(net(), 0.5)


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


def test_weights_that_were_masked_before_a_state_is_loaded_are_noticed():
    loop = Loop("rigl", 0.8).run(12)
    tensors, facts = loop.sparse.state()
    values = copied(loop.model.state_dict())
    model = net()
    model.load_state_dict(values, strict=False)
    late = METHODS["rigl"](model, 0.8, loop.sparse.schedule)  # masks what was just loaded
    with pytest.raises(UsageError, match="first make RigL, then load the model's state dict"):
        late.load_state(tensors, facts)
    model.load_state_dict(values, strict=False)
    late.load_state(tensors, facts)
    verify(model, late.plan)
    assert all(torch.equal(late.masks[n], on) for n, on in loop.sparse.masks.items())


def test_a_sample_of_an_n_m_pattern_has_enough_in_every_block():
    loop = Loop("iee", None, pattern="2:4", reactivate=0.05, fraction=0.5)
    seen = 0
    while loop.sparse.stage != "final":
        awake = [part.clone() for part in loop.sparse._exploration.awake]
        left = [part.clone() for part in loop.sparse._state.left_over]
        stage = loop.sparse.stage
        loop.step()
        if stage == "explore" and loop.sparse.stage != "explore":
            for on, before, back in zip(loop.sparse._masks.active, left, awake, strict=True):
                assert not (on & ~before & ~back).any()
                seen += int((on & ~before).sum())
    assert seen


def test_recent_values_of_weights_that_were_never_active_are_those_they_came_with():
    model = net()
    values = copied(model.state_dict())
    sparse = pk.sparsify.IEE(model, 0.8, SparsitySchedule(40, **SHORT, source="mru"))
    for name, held in zip(sparse.masks, sparse._exploration.asleep, strict=True):
        assert torch.equal(held, values[f"{name}.weight"])
    loop = Loop("iee", 0.8, source="mru", explore=0).run()
    assert any(row["iou"] < 1 for row in loop.sparse.history)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be a whole number of at least 1"),
        ({"fraction": 0}, "`fraction` must be above 0"),
        ({"fraction": 1}, "`fraction` must be below 1"),
        ({"decay": "fast"}, "option `decay`: Input should be 'cosine'"),
        ({"explore": 0}, "`explore` of 0 leaves nothing to grow by"),
        ({"omega": 1}, "unknown option 'omega'; known: every, fraction"),
        ({"until": "soon"}, "option `until`"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(UsageError, match=message):
        SparsitySchedule.parse(100, options)


def test_default_lengths_follow_the_training():
    assert SparsitySchedule(1116).lengths(exploring=True) == (13, 0, 13)
    assert SparsitySchedule(10**6).lengths(exploring=True) == (150, 0, 150)
    assert SparsitySchedule(10**6).lengths(exploring=False) == (100, 0, 0)
    assert SparsitySchedule(1000).lengths(exploring=False) == (37, 0, 0)


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


# --- saving


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = pk.sparsify  # the name is the package, whatever was imported before
    assert model.RigL is METHODS["rigl"]
    from prunekit import zoo

    network = zoo.build("resnet20").eval()
    sparse = pk.sparsify.Static(network, pattern="2:4", schedule=SparsitySchedule(1))
    pk.save(tmp_path / "run", network, sparse.plan, base="zoo:resnet20")
    loaded = pk.load(tmp_path / "run")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    plan = sparse.plan
    assert pk.SparsityPlan.load(tmp_path / "run/sparsity.json") == plan
    with torch.no_grad():
        network.get_submodule(plan.sparse[0].name).weight.fill_(1.0)
    with pytest.raises(ModelError, match="weights that are not zero, its plan"):
        pk.save(tmp_path / "other", network, plan, base="zoo:resnet20")
    assert not (tmp_path / "other" / "model.safetensors").exists()


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


def test_a_state_can_be_saved_as_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    for options in ({}, {"source": "mru"}, {"grow": "mru"}, {"momentum": "kept"}, "channels last"):
        model = net()
        if options == "channels last":
            model, options = model.to(memory_format=torch.channels_last), {"momentum": "kept"}
        loop = Loop("iee", model=copy.deepcopy(model), **options)
        while loop.done < 8:
            tensors, facts = loop.sparse.state()
            save_file(tensors, tmp_path / "state.safetensors")
            back = load_file(tmp_path / "state.safetensors")
            assert back.keys() == tensors.keys()
            loop.sparse.load_state(back, facts)
            loop.step()
        again = Loop("iee", model=model, **options).run(8)
        for name, value in again.model.state_dict().items():
            assert torch.equal(loop.model.state_dict()[name], value), name


# --- stopping and going on


@pytest.mark.parametrize(
    ("method", "optimizer", "options"),
    [
        ("iee", "sgd", {}),
        ("iee", "adamw", {"momentum": "kept", "reactivate": 0.5, "sample": "gradient"}),
        ("iee", "sgd", {"source": "mru", "freeze": False, "criterion": pk.Taylor()}),
        ("iee", "sgd", {"grow": "mru", "freeze": False, "momentum": "kept"}),
        ("rigl", "sgd", {"ranking": "global"}),
        ("set", "adamw", {"criterion": pk.Taylor()}),
        ("gmp", "sgd", {}),
        ("static", "nadam", {}),
    ],
)
def test_a_training_taken_up_at_any_step_ends_in_the_same_bits(method, optimizer, options):
    arguments, options = (method, 0.8, optimizer), {"steps": 24, **options}
    whole, stops = Loop(*arguments, **options), []
    while whole.done < 24:
        stops.append(saved(whole))
        whole.step()
    for checkpoint in stops:
        json.dumps(checkpoint[2][1])  # facts go into a file
        loop = went_on(checkpoint, *arguments, **options).run()
        assert loop.sparse.history == whole.sparse.history
        assert loop.sparse.work == whole.sparse.work
        assert loop.sparse.survival() == whole.sparse.survival()
        for name, value in whole.state().items():
            assert torch.equal(loop.state()[name], value), (name, checkpoint[3])
    other = Loop(method, 0.7, optimizer, **options)
    with pytest.raises(UsageError, match="was made with `target`"):
        other.sparse.load_state(*stops[3][2])


def some_data(count=96):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 4, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (torch.arange(count) % 2)
    images[labels > 1, 0] += 1
    train = TensorDataset(images[:64], labels[:64])
    return Data(train, TensorDataset(images[64:], labels[64:]), 4, (4, 6, 6), "some")


class _StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["iee", "rigl"])
def test_fit_goes_on_as_if_never_stopped(tmp_path, method):
    config = TrainConfig(epochs=5, batch_size=8, lr=0.05)
    data = some_data()

    def train(folder, stop=None, resume=False):
        model = net()
        # a cycle that does not divide an epoch, so that checkpoints fall into every stage
        rule = METHODS[method](model, 0.8, SparsitySchedule(40, **{**SHORT, "explore": 6}))
        rows = []

        def log(row):
            rows.append(row)
            if row["stage"] != "update" and row["epoch"] == stop:
                raise _StopError

        fit(model, data, config, folder=folder, resume=resume, rule=rule, log=log)
        return model, rule, rows

    model, rule, rows = train(tmp_path / "whole")
    stages = {row["stage"] for row in rows}
    assert stages == {"update", "training"}
    for stop in (1, 2, 3, 4):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(_StopError):
            train(folder, stop)
        again, after, _ = train(folder, resume=True)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), (name, stop)
        assert after.history == rule.history
        verify(again, after.plan)


WORKER = """
import hashlib, json, sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from test_sparse_training import METHODS, SHORT, SparsitySchedule, TrainConfig, fit, net, some_data
from prunekit.sparsify import verify
from prunekit.support.processes import rank
torch.set_num_threads(1)
folder, *methods = sys.argv[1:]
import prunekit as pk
found = {{}}
for method in methods:
    model = net(rank())  # other weights on every rank, until the first one's are sent round
    rule = METHODS[method](model, 0.8, SparsitySchedule(40, **SHORT), criterion=pk.Taylor())
    fit(model, some_data(), TrainConfig(epochs=5, batch_size=8, lr=0.05), rule=rule)
    verify(model, rule.plan)
    digest = hashlib.sha256()
    for part in [*rule.masks.values(), *(p for p in model.parameters())]:
        digest.update(part.detach().contiguous().numpy().tobytes())
    found[method] = digest.hexdigest(), rule.history
Path(folder, f"rank{{rank()}}.json").write_text(json.dumps(found))
"""


def test_two_processes_have_the_same_structure(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[str(here)]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path), "iee", "rigl"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first == second
    assert [*first] == ["iee", "rigl"]
    assert all(len(history) >= 3 for _, history in first.values())
