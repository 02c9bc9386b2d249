"""One solve over everything: nothing is locked, what stays is as it was, widths follow scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit.support.errors import UsageError
from support.iee_loop import Loop, copied, lifted, saved, tensors, went_on
from support.nets import Concat, Depthwise, Flatten, Residual

JOINT = {
    "exchange": "joint",
    "warmup": 2,
    "estimate": 4,
    "improve": 0,
    "explore": 8,
    "until": 0.9,
    "grow": None,
}
NETS = {"residual": Residual, "concat": Concat, "depthwise": Depthwise, "flatten": Flatten}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": "dense", "approach": 0.6},
        {"reactivate": 0.5},
        {"freeze": False},
        {"adaptive": True},
    ],
    ids=str,
)
def test_every_update_is_within_its_budget_and_floors(name, options):
    loop = Loop(NETS[name], steps=60, **{**JOINT, **options})
    loop.run(60)
    rows = loop.iee.history
    assert len(rows) >= 3
    schedule = loop.iee.schedule
    for row in rows:
        wanted = schedule.budget_at(row["cycle"], loop.iee.chooser.fraction)
        assert row["predicted_ratio"] <= wanted * (1 + 1e-9)
        assert row["omega"] == 1.0
        for group in loop.graph.groups:
            if group.id in row["widths"] and options.get("start") != "dense":
                assert row["widths"][group.id] >= math.ceil(schedule.floor * group.size) or (
                    row["widths"][group.id] == group.widths(loop.iee.chooser.granularity)[0]
                )
    assert loop.iee.stage == "final"
    assert loop.cost(loop.iee.plan.widths) <= loop.limit


@pytest.mark.parametrize("grow", ["explored", "zero", "mru"])
def test_what_stays_is_as_it_was_and_what_comes_is_what_it_explored(grow):
    loop = Loop(steps=60, **{**JOINT, "grow": grow}).until("explore")
    before, plan = copied(tensors(loop.iee.slim)), loop.iee.plan
    inside = loop.inside()
    while loop.iee.stage == "explore":
        wide = copied(tensors(loop.iee.model))
        last = {n: t for n, t in wide.items() if t.is_floating_point()}
        loop.step()
    after = {n: lifted(loop.inside()[n], t) for n, t in tensors(loop.iee.slim).items()}
    stayed = {n: inside[n] & loop.inside()[n] for n in inside}
    norm_buffers = ("running_mean", "running_var")
    for name, tensor in before.items():
        dense = lifted(inside[name], tensor)
        if tensor.is_floating_point() and not name.endswith(norm_buffers):
            assert torch.equal(after[name][stayed[name]], dense[stayed[name]]), name
    assert loop.iee.plan != plan
    assert last
    (row,) = loop.iee.history
    assert row["grown"] > 0


def test_a_channel_that_scores_less_goes_though_its_group_was_active():
    """Scores of the same exploration decide alone: those kept are the best, group by group."""
    loop = Loop(steps=60, **JOINT).until("explore")
    loop.run(7)
    loop.backward()
    loop.iee.after_backward(loop.iee.model, 0)
    scores = loop.iee._total.scores().by_group
    loop.optimizer.step()
    loop.iee.after_step(loop.iee.model, loop.optimizer, 0)
    for group in loop.graph.groups:
        if group.prunable:
            kept = {*loop.iee.plan.keep[group.id]}
            best = np.argsort(-scores[group.id], kind="stable")[: len(kept)]
            assert {*best.tolist()} == kept


def test_scores_are_taken_while_exploring_alone():
    loop = Loop(steps=60, **JOINT)
    _ = loop.iee.plan
    for _ in range(60):
        assert (loop.iee._total is not None) == (loop.iee.stage == "explore")
        loop.step()


@pytest.mark.parametrize("options", [{}, {"reactivate": 0.5, "grow": "mru"}], ids=str)
def test_a_run_taken_up_at_any_step_ends_in_the_same_bits(options):
    short = {**JOINT, "steps": 40, **options}
    whole, stops = Loop(**short), []
    _ = whole.iee.plan
    while whole.done < 40:
        stops.append(saved(whole))
        whole.step()
    assert len(whole.iee.history) >= 2
    for checkpoint in stops[::3]:
        loop = went_on(checkpoint, True, **short)
        loop.run(40 - loop.done)
        assert loop.iee.plan == whole.iee.plan
        assert loop.iee.history == whole.iee.history
        for name, tensor in tensors(whole.iee.slim).items():
            assert torch.equal(tensors(loop.iee.slim)[name], tensor), (name, checkpoint["done"])


class Pinched(nn.Module):
    """A wide layer, a narrow one that all must pass, and a wide one."""

    def __init__(self):
        super().__init__()
        sizes = [16, 64, 8, 64]
        layers = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(64, 24)

    def forward(self, x):
        return self.head(self.body(x))


def trained(exchange, steps=800):
    torch.manual_seed(0)
    model = Pinched()
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(24, 16, generator=generator)
    graph = pk.trace(model.eval(), torch.randn(1, 16))
    options = {"exchange": exchange, "estimate": 20, "explore": 20, "improve": 0, "until": 0.6}
    schedule = pk.IEESchedule(800, warmup=40, **options)
    budget = pk.Budget.parse("macs=30%")
    iee = pk.IEE(model.train(), graph, None, budget, schedule=schedule, granularity=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        labels = torch.randint(24, (64,), generator=generator)
        inputs = centres[labels] + 0.6 * torch.randn(64, 16, generator=generator)
        F.cross_entropy(iee.model(inputs), labels).backward()
        iee.step(optimizer)
    return iee


def test_a_pinch_is_widened_against_its_neighbours():
    """Its channels are cheap once its neighbours are narrow, and each is worth many of theirs."""
    iee, uniform = trained("joint"), trained("joint", steps=0)
    narrow, wide = "body.3", "body.0"
    assert uniform.plan.widths[narrow] <= 4
    assert iee.plan.widths[narrow] >= 7
    assert iee.plan.widths[wide] < uniform.plan.widths[wide]
    assert len(iee.history) >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"explore": 4},
            "an exploration of 4 steps is too short to score by; with exchange `joint`",
        ),
        ({"exploring": False}, "exchange `joint` scores while it explores; leave `exploring` on"),
        (
            {"ranking": "local"},
            "with exchange `joint` all channels compete; leave `ranking` global",
        ),
        ({"exchange": "all"}, "`exchange` must be one of separate, joint, not 'all'"),
        ({"grow": "best"}, "`grow` must be one of explored, mru, zero, not 'best'"),
        ({"steps": 20}, "one IEE cycle takes 0 warm-up and 60 further steps, the training has 20"),
    ],
)
def test_what_cannot_be_is_said_before_training(options, message):
    with pytest.raises(UsageError, match=message):
        pk.IEESchedule(**{"steps": 600, "exchange": "joint", **options})


def test_a_budget_at_which_no_group_can_move():
    with pytest.raises(
        UsageError, match="no group can be wider than its least: all 2 stay in one block of 8"
    ):
        Loop(budget="macs=26%", granularity=8, steps=60, **JOINT)


def test_defaults_of_a_joint_exchange():
    schedule = pk.IEESchedule(3000, exchange="joint")
    assert schedule.warm == 125
    assert schedule.lengths == (40, 0, 20)
    assert schedule.last_step == 0.35 * 3000
    assert schedule.growth == "explored"
    assert pk.IEESchedule(3000).growth == "zero"
