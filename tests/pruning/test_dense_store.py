"""What grown channels and explorations start from."""

from __future__ import annotations

import copy

import pytest
import torch

import prunekit as pk
from support.iee_loop import Loop, batch, belongs, copied, lifted, tensors
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    Residual,
    SqueezeExcite,
)


def explored(loop):
    """Up to the first growth; the network before it, and both structures."""
    loop.until("explore")
    before, small = loop.iee.plan, copy.deepcopy(loop.iee.slim).eval()
    mru = copied(tensors(loop.model))
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    return before, small, mru, wide


@pytest.mark.parametrize(
    "make", [Residual, Depthwise, Concat, SqueezeExcite, Flatten], ids=lambda make: make.__name__
)
def test_growth_at_zero_does_not_change_the_function(make):
    loop = Loop(make, grow="zero", criterion=pk.Magnitude())
    before, small, _, _ = explored(loop)
    assert loop.iee.plan.widths != before.widths
    inputs, _ = batch(99)
    grown = copy.deepcopy(loop.iee.model).eval()
    assert torch.allclose(grown(inputs), small(inputs), rtol=1e-12, atol=1e-13)
    # and what writes the grown channels is what they explored: there is something to learn
    taught = Loop(make, grow="explored", criterion=pk.Magnitude())
    explored(taught)
    other = copy.deepcopy(taught.iee.model).eval()
    assert taught.iee.plan == loop.iee.plan
    assert not torch.allclose(other(inputs), small(inputs), atol=1e-4)


@pytest.mark.parametrize("source", ["explored", "mru"])
@pytest.mark.parametrize("grow", ["explored", "mru"])
def test_what_grown_channels_and_explorations_start_from(source, grow):
    loop = Loop(Residual, source=source, grow=grow, optimizer="adamw")
    first = loop.inside()
    initial = copied(tensors(loop.model))
    latest = copied(initial)  # when each element was last active

    def note(network, inside):
        for name, tensor in tensors(network).items():
            latest[name][inside[name]] = tensor.detach().reshape(-1)

    found = copied(initial)  # what the dense network holds
    note(loop.iee.model, first)
    while loop.iee.stage != "final":
        stage, network, inside = loop.iee.stage, loop.iee.model, loop.inside()
        loop.step()
        if stage != "explore":
            note(network, inside)
            for name, tensor in tensors(network).items():
                found[name][inside[name]] = tensor.detach().reshape(-1)
            if loop.iee.stage == "explore":
                for name, tensor in tensors(loop.iee.model).items():
                    begun = latest[name] if source == "mru" else found[name]
                    assert torch.equal(tensor, begun), name
        else:
            outside = {n: ~m for n, m in inside.items()}
            for name, tensor in tensors(network).items():
                found[name][outside[name]] = tensor.detach()[outside[name]]
            if loop.iee.stage != "explore":
                now = loop.inside()
                for name, tensor in tensors(loop.iee.model).items():
                    begun = latest[name] if grow == "mru" else found[name]
                    assert torch.equal(lifted(now[name], tensor)[now[name]], begun[now[name]])
                    found[name][now[name]] = begun[now[name]]
                note(loop.iee.model, now)
    assert len(loop.iee.history) == 3


def test_the_momentum_of_what_is_explored_begins_at_zero_when_asked():
    for momentum in ("kept", "zero"):
        loop, grown = Loop(lambda: Residual(16), momentum=momentum), 0
        for _ in range(3):
            loop.until("explore")
            assert bool(loop.state()) == (momentum == "kept")
            active = loop.inside()
            loop.until("estimate" if loop.done < 22 else "final")
            now = loop.inside()
            for name, state in loop.state().items():
                buffer = lifted(now[name], state["momentum_buffer"])
                assert buffer[active[name]].any()
                grown += int((buffer[~active[name]] != 0).sum())
        assert sum(row["grown"] for row in loop.iee.history) > 3
        assert bool(grown) == (momentum == "kept")


def test_reactivating_some_of_them_leaves_the_others_alone():
    loop = Loop(lambda: Residual(16), reactivate=0.4, optimizer="adamw", budget="macs=40%")
    samples = []
    while loop.iee.stage != "final":
        loop.until("explore")
        active, wide = loop.iee.plan, loop.iee.model
        held = copied(tensors(loop.model))
        _, facts = loop.iee.state()
        sample = pk.ChannelPlan.from_keep(loop.graph, facts["wide"])
        samples.append({g: {*sample.keep[g]} - {*active.keep[g]} for g in sample.keep})
        for group in ("stem", "conv1"):
            asleep = 16 - len(active.keep[group])
            assert {*active.keep[group]} <= {*sample.keep[group]}
            assert len(samples[-1][group]) == max(1, round(0.4 * asleep))
        assert {n: t.shape for n, t in tensors(wide).items()} == {
            n: t.shape for n, t in tensors(pk.slim(loop.model, sample)).items()
        }
        brought = belongs(loop.model, loop.graph, sample)
        while loop.iee.stage == "explore":
            loop.step()
        for group, kept_now in loop.iee.plan.keep.items():
            assert {*kept_now} <= {*sample.keep[group]}
        moved = 0
        for name, tensor in tensors(loop.model).items():
            assert torch.equal(tensor[~brought[name]], held[name][~brought[name]]), name
            moved += int((tensor != held[name]).sum())
        assert moved > 50
    again = Loop(lambda: Residual(16), reactivate=0.4, optimizer="adamw", budget="macs=40%").run(30)
    assert again.iee.plan == loop.iee.plan
    assert samples[0] != samples[1] != samples[2]
    other = Loop(lambda: Residual(16), reactivate=0.4, budget="macs=40%", seed=1)
    other.until("explore")
    assert other.iee.state()[1]["wide"] != _
