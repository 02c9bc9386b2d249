"""When stages begin and end: cycles, lengths, options."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import prunekit as pk
from prunekit.support.errors import UsageError
from support.iee_loop import Loop
from support.nets import (
    Residual,
)

# settings, and how many updates 30 steps have
SETTLED = {
    "the first update fills the budget up, the second changes nothing": (
        {"stop_iou": 1.0, "omega": 0.0},
        2,
    ),
    "an overlap that the first update has": ({"stop_iou": 0.3}, 1),
    "one that none has in time": ({"stop_iou": 1.0}, 3),
    "from dense not before the budget has come down": (
        {"stop_iou": 0.1, "start": "dense", "approach": 1.0},
        3,
    ),
}


@pytest.mark.parametrize("why", SETTLED)
def test_updates_stop_once_the_structure_has_settled(why):
    options, updates = SETTLED[why]
    iee = Loop(**options).run(30).iee
    assert (iee.stage, len(iee.history)) == ("final", updates)
    if options.get("omega") == 0.0:
        assert [row["iou"] == 1 for row in iee.history] == [False, True]


def test_cycles_of_a_settled_structure_get_longer():
    options = {"steps": 120, "omega": 0.0, "warmup": 0, "estimate": 2, "improve": 1, "explore": 1}
    loop = Loop(adaptive=True, **options, until=1.0).run(120)
    lengths = np.diff([0, *(row["step"] for row in loop.iee.history)]).tolist()
    assert [row["iou"] == 1 for row in loop.iee.history[:3]] == [False, True, True]
    assert lengths[:6] == [4, 4, 7, 13, 25, 25]
    assert loop.iee.stage == "final"
    plain = Loop(adaptive=False, **options, until=1.0).run(120)
    assert len(plain.iee.history) == 30


def test_cycles_get_longer_at_the_budget_only():
    """From the dense network: with fewer cycles on the way it would never be reached."""
    loop = Loop(
        lambda: Residual(16), start="dense", adaptive=True, omega=0.05, steps=200, approach=1.0
    )
    loop.run(200)
    assert loop.cost(loop.iee.plan.widths) <= 0.5 * loop.cost({})


def test_cycles_that_were_lost_do_not_leave_the_network_above_its_budget():
    loop = Loop(lambda: Residual(16), start="dense", approach=1.0, criterion=pk.Taylor())
    while len(loop.iee.history) < 1:
        loop.step()
    for _ in range(10):  # no finite scores: the stage waits for some
        loop.backward()
        for parameter in loop.iee.model.parameters():
            parameter.grad.fill_(float("nan"))
        loop.iee.after_backward(loop.iee.model, loop.done)
        for parameter in loop.iee.model.parameters():
            parameter.grad.zero_()
        loop.iee.after_step(loop.iee.model, loop.optimizer, loop.done)
        loop.iee.model.zero_grad(set_to_none=True)
        loop.done += 1
    loop.run(30 - loop.done)
    assert len(loop.iee.history) == 2  # of three
    assert loop.iee.stage == "final"
    assert loop.cost(loop.iee.plan.widths) <= 0.5 * loop.cost({})


def test_the_last_word_on_the_widths_is_had_once():
    calls = []

    def settle(update, smallest):
        found = {share: update(share) for share in (0.3, 0.45, 0.5, 0.7)}
        calls.append((loop.iee.stage, loop.done, loop.iee.plan, found, smallest(0.0)))
        return found[0.45].plan

    loop = Loop(lambda: Residual(16))
    loop.iee.settle = settle
    loop.run(30)
    ((stage, _, active, found, smallest),) = calls
    assert stage == "explore"
    assert loop.iee.plan == found[0.45].plan
    assert loop.iee.history[-1]["widths"] == {
        g: found[0.45].widths[g] for g in loop.iee.history[-1]["widths"]
    }
    assert loop.iee.model.stem.out_channels == found[0.45].widths["stem"]
    assert smallest.widths["stem"] == smallest.widths["conv1"] == 1
    dense = loop.cost({})
    for share, allocation in found.items():
        assert allocation.cost <= share * dense
        for group, channels in allocation.plan.keep.items():
            # above what is active it can only grow, below it only shrink
            fewer, more = {*channels}, {*active.keep[group]}
            assert fewer <= more if share < 0.49 else fewer >= more


def test_from_dense_the_budget_falls_exponentially():
    schedule = pk.IEESchedule(2000, start="dense", warmup=0, until=0.8)
    assert schedule.lengths == (56, 14, 10)
    assert schedule.updates == 20
    shares = [schedule.budget_at(cycle, 0.25) for cycle in range(16)]
    assert np.diff(np.log([1.0, *shares[:14]])) == pytest.approx(math.log(0.25) / 14)
    assert shares[13:] == pytest.approx([0.25] * 3)
    uniform = replace(schedule, start="uniform")
    assert {uniform.budget_at(cycle, 0.25) for cycle in range(12)} == {0.25}
    loop = Loop(lambda: Residual(16), start="dense", approach=1.0)
    assert loop.iee.plan.is_dense
    assert loop.iee.model is not loop.model
    ratios = [row["predicted_ratio"] for row in loop.run(30).iee.history]
    assert all(r <= 0.5 ** ((i + 1) / 3) for i, r in enumerate(ratios))
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.6


# settings of 3,200 steps: warm-up, lengths (H, J, Q), updates
LENGTHS = {
    "the time is divided among the cycles": ({}, 400, (53, 14, 9), 20),
    "more cycles are shorter": ({"cycles": 40}, 400, (27, 7, 5), 38),
    "a dense start warms up no more, and ends sooner": (
        {"start": "dense"},
        *(0, (45, 12, 8), 19),
    ),
    "lengths that are given": (
        {"estimate": 10, "improve": 0, "explore": 5},
        *(400, (10, 0, 5), 101),
    ),
    "scoring alone takes one step": ({"exploring": False}, 400, (53, 14, 1), 22),
    "four steps have one cycle": ({"steps": 4}, 0, (2, 1, 1), 1),
    "no time has one update all the same": ({"steps": 100, "until": 0.0}, 12, (2, 1, 1), 1),
}


@pytest.mark.parametrize("why", LENGTHS)
def test_stage_lengths(why):
    options, warm, lengths, updates = LENGTHS[why]
    schedule = pk.IEESchedule(**{"steps": 3200, **options})
    assert (schedule.warm, schedule.lengths, schedule.updates) == (warm, lengths, updates)


def test_updates_end_by_the_share_of_the_start():
    assert pk.IEESchedule(3200, start="dense").last_step == 0.4 * 3200
    assert pk.IEESchedule(3200).last_step == 0.6 * 3200


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("omega", 1.0, "`omega` must be below 1"),
        ("omega", -0.1, "`omega` must be from 0 to 1, not -0.1"),
        ("omega", float("nan"), "`omega` must be from 0 to 1, not nan"),
        ("omega_end", 2, "`omega_end` must be from 0 to 1, not 2"),
        ("until", 1.5, "`until` must be from 0 to 1, not 1.5"),
        ("floor", -1, "`floor` must be from 0 to 1, not -1"),
        ("approach", 7, "`approach` must be from 0 to 1, not 7"),
        ("reactivate", 0, "`reactivate` must be above 0"),
        ("decay", "linear", "`decay` must be one of exponential, cosine, constant, not 'linear'"),
        ("start", "erk", "`start` must be one of uniform, dense, not 'erk'"),
        ("source", "zero", "`source` must be one of explored, mru, not 'zero'"),
        ("grow", "best", "`grow` must be one of explored, mru, zero, not 'best'"),
        ("momentum", 0.9, "`momentum` must be one of kept, zero, not 0.9"),
        ("norm", "group", "`norm` must be one of batch, running, not 'group'"),
        ("estimate", 0, "`estimate` must be a whole number of at least 1, not 0"),
        ("estimate", 1.5, "`estimate` must be a whole number of at least 1, not 1.5"),
        ("improve", -1, "`improve` must be a whole number of at least 0, not -1"),
        ("warmup", -1, "`warmup` must be a whole number of at least 0, not -1"),
        ("explore", 0, "`explore` must be at least 1; to leave it out set `exploring` off"),
        ("explore", 2.5, "`explore` must be a whole number of at least 1, not 2.5"),
        ("steps", 0, "`steps` must be a whole number of at least 1, not 0"),
        ("steps", 50.5, "`steps` must be a whole number of at least 1, not 50.5"),
        ("stop_iou", 0, "`stop_iou` must be above 0 and at most 1, not 0"),
        ("seed", -1, "`seed` must be a whole number of at least 0, not -1"),
        ("estimate", 99, "one IEE cycle takes 12 warm-up and 101 further steps, the training has"),
    ],
)
def test_a_wrong_option_is_named(name, value, message):
    with pytest.raises(UsageError) as caught:
        pk.IEESchedule(**{"steps": 100, "improve": 1, "explore": 1, name: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_from_text():
    text = {
        "omega": "0.3",
        "explore": "4",
        "exploring": "false",
        "start": "dense",
        "stop_iou": "0.9",
    }
    assert pk.IEESchedule.parse(100, text) == pk.IEESchedule(
        100, omega=0.3, explore=4, exploring=False, start="dense", stop_iou=0.9
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("nonsense", "1", "unknown IEE option 'nonsense'; known: warmup, cycles, estimate"),
        ("steps", "9", "unknown IEE option 'steps'"),
        ("omega", "much", "IEE option `omega`: "),
        ("explore", "2.5", "IEE option `explore`: "),
        ("grow", "best", "grow"),
        ("omega", "2", "`omega` must be from 0 to 1, not 2.0"),
        ("seed", "-1", "`seed` must be"),
    ],
)
def test_a_wrong_text_is_named(option, value, message):
    with pytest.raises(UsageError) as caught:
        pk.IEESchedule.parse(100, {option: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
