"""Exploration by weights: what explores, its momentum, what is taken over."""

import copy

import pytest
import torch

import prunekit as pk
from prunekit.sparsify import SparsitySchedule, verify
from prunekit.support.errors import UsageError
from support.iee_loop import copied
from support.sparse_loop import SHORT, Loop, net
from support.sparse_training import explored


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


def test_recent_values_of_weights_that_were_never_active_are_those_they_came_with():
    model = net()
    values = copied(model.state_dict())
    sparse = pk.sparsify.IEE(model, 0.8, SparsitySchedule(40, **SHORT, source="mru"))
    for name, held in zip(sparse.masks, sparse._exploration.asleep, strict=True):
        assert torch.equal(held, values[f"{name}.weight"])
    loop = Loop("iee", 0.8, source="mru", explore=0).run()
    assert any(row["iou"] < 1 for row in loop.sparse.history)
