"""Which channels go and come: ranks, floors, budgets, scores."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prunekit as pk
from prunekit.allocation.costs import MacsCost, ParamsCost
from prunekit.allocation.solvers import Uniform
from prunekit.core.plan import narrowed
from prunekit.criteria import Accumulator
from prunekit.support.errors import InfeasibleError, UsageError
from prunekit.support.registry import criteria
from support.iee_loop import Loop, batch, belongs, tensors
from support.nets import (
    Concat,
    Depthwise,
    Flatten,
    Residual,
    image,
    randomise,
)
from support.scoring import while_training


class Asked:
    """The solver, remembering what it was asked: the values are prefix sums of the scores."""

    def __init__(self):
        self.problems = []

    def solve(self, problem):
        self.problems.append(problem)
        return pk.Joint().solve(problem)

    def scores(self, number):
        found = self.problems[number].variables
        return {v.name: np.diff(v.values) for v in found if len(v.widths) > 1}


def taylor(model, graph):
    """HALP's score of every channel of a `Residual`: by the norms that write it."""
    norms = {"stem": ("bn", "bn2"), "conv1": ("bn1",)}
    found = {}
    for group in (g for g in graph.groups if g.prunable):
        terms = 0
        for name in norms[group.id]:
            norm = getattr(model, name)
            terms = terms + (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad)
        found[group.id] = terms.detach().abs()
    return found


def test_pruning_drops_what_scored_least_and_growing_adds_what_scored_best():
    loop = Loop(lambda: Residual(16), "sgd")
    assert {g.id for g in loop.graph.groups if g.prunable} == {"stem", "conv1"}
    sums, updates = {}, 0
    while loop.iee.stage != "final":
        stage, plan, network = loop.iee.stage, loop.iee.plan, loop.iee.model
        loop.backward()
        if stage in ("estimate", "explore"):
            for group, values in taylor(network, loop.graph).items():
                sums[group] = sums.get(group, 0) + values
        loop.iee.step(loop.optimizer)
        loop.done += 1
        now = loop.iee.plan
        if loop.iee.stage == stage:
            assert now == plan
            continue
        if stage in ("warm-up", "improve"):
            assert now == plan
        elif stage == "estimate":
            for group, values in sums.items():
                score = dict(zip(plan.keep[group], values.tolist(), strict=True))
                stays = {*now.keep[group]}
                assert stays <= score.keys()
                gone = score.keys() - stays
                assert not gone or max(score[c] for c in gone) < min(score[c] for c in stays)
            omega = loop.iee.schedule.omega_at(updates)
            assert loop.cost(now.widths) <= loop.limit * (1 - omega)
            assert now.widths != plan.widths or updates  # 0.4 of the budget is many channels
        else:
            for group, values in sums.items():
                assert {*plan.keep[group]} <= {*now.keep[group]}
                score = values.tolist()
                grown = {*now.keep[group]} - {*plan.keep[group]}
                left = {*range(16)} - {*now.keep[group]}
                if grown and left:
                    assert min(score[c] for c in grown) > max(score[c] for c in left)
            assert loop.cost(now.widths) <= loop.limit
            assert fits_no_more(loop, now)
            updates += 1
        sums = {}
    assert updates == 3


def fits_no_more(loop, plan, block=1):
    """Whether no group can take another step within the budget."""
    for group in loop.graph.groups:
        wider = [w for w in group.widths(block) if w > plan.widths[group.id]]
        if wider and loop.cost({**plan.widths, group.id: wider[0]}) <= loop.limit:
            return False
    return True


@pytest.mark.parametrize("make", [Depthwise, Concat, Flatten], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("budget", "block", "start"),
    [("macs=40%", 1, "uniform"), ("params=60%", 2, "dense"), ("macs=70%", 2, "uniform")],
)
def test_the_structure_costs_the_budget_after_growth_and_less_before(make, budget, block, start):
    loop = Loop(make, budget=budget, granularity=block, start=start, criterion=pk.Magnitude())
    schedule, cost = loop.iee.schedule, ParamsCost() if "params" in budget else MacsCost()
    assert isinstance(loop.iee.chooser.costs, type(cost))
    dense, cycle = loop.cost({}), 0
    fraction = loop.limit / dense
    smallest = loop.cost({g.id: g.widths(block)[0] for g in loop.graph.groups})
    while loop.iee.stage != "final":
        stage, plan = loop.iee.stage, loop.iee.plan
        allowed = schedule.budget_at(cycle, fraction) * dense
        loop.step()
        now = loop.iee.plan
        assert all(w in loop.graph.group(g).widths(block) for g, w in now.widths.items()), (
            now.widths
        )
        if stage == "estimate" != loop.iee.stage:
            wanted = allowed * (1 - schedule.omega_at(cycle))
            assert loop.cost(now.widths) <= max(wanted, smallest) * (1 + 1e-9)
        if stage == "explore" != loop.iee.stage:
            assert loop.cost(now.widths) <= allowed * (1 + 1e-9)
            assert all({*plan.keep[g]} <= {*now.keep[g]} for g in plan.keep)
            cycle += 1
    assert loop.cost(loop.iee.plan.widths) <= loop.limit
    assert fits_no_more(loop, loop.iee.plan, block)


def test_pruning_leaves_every_group_its_floor_where_the_budget_allows():
    one_sided = {"stem": 0.0, "conv1": 1.0}

    class Partial(pk.Magnitude):
        def channel_scores(self, group, modules):
            return one_sided[group.id] * super().channel_scores(group, modules)

    for floor, least in ((0.25, 4), (0.0, 1)):
        criterion = Partial(normalize="none")
        loop = Loop(lambda: Residual(16), criterion=criterion, floor=floor, start="dense")
        loop.until("improve")
        assert loop.iee.plan.widths["stem"] >= least
        if floor:
            held = loop.iee.plan.widths["stem"]
        else:
            assert loop.iee.plan.widths["stem"] < held
    # below what the floors leave the budget wins
    low = Loop(lambda: Residual(16), budget="macs=6%", floor=0.5, start="dense", approach=0.0)
    low.until("improve")
    assert low.cost(low.iee.plan.widths) <= low.limit * 0.6


def test_a_budget_nobody_can_reach_is_refused_or_ends_at_the_smallest():
    with pytest.raises(InfeasibleError, match="is below what is reachable"):
        _ = Loop(budget="macs=1%").iee.plan
    loop = Loop(budget="macs=1%", start="dense").until("final")
    assert set(loop.iee.plan.widths.values()) == {1, 4}
    with pytest.raises(UsageError, match="is met by the dense network; there is nothing to prune"):
        Loop(budget="macs=100%")


@pytest.mark.parametrize("start", ["uniform", "dense"])
def test_local_ranking_exchanges_channels_within_groups_and_keeps_widths_uniform(start):
    budget = "macs=40%"
    loop = Loop(lambda: Residual(16), budget=budget, ranking="local", start=start, granularity=4)
    allowed = pk.Budget.parse(budget)
    nothing = pk.score(loop.model, loop.graph, pk.Magnitude())
    uniform = pk.allocate(loop.graph, nothing, None, allowed, Uniform(), granularity=4).widths
    seen = 0
    while loop.iee.stage != "final":
        before, cycle = loop.iee.plan.keep, len(loop.iee.history)
        loop.until("explore")
        pruned = loop.iee.plan.keep
        fraction = loop.iee.schedule.budget_at(cycle, loop.limit / loop.cost({}))
        omega = loop.iee.schedule.omega_at(cycle)
        for group in loop.graph.groups:
            kept_now, name = {*pruned[group.id]}, group.id
            assert kept_now <= {*before[name]}
            if group.prunable and fraction < 0.41:
                width = min(uniform[name], len(before[name]))
                assert len(kept_now) == max(1, int((1 - omega) * width))
        while len(loop.iee.history) == cycle:
            loop.step()
        assert all({*pruned[g]} <= {*kept_now} for g, kept_now in loop.iee.plan.keep.items())
        seen += sum(len({*k} - {*before[g]}) for g, k in loop.iee.plan.keep.items())
    assert loop.iee.plan.widths == uniform
    assert seen


def test_a_channel_that_scores_zero_ranks_above_one_that_was_not_there():
    class Nothing(pk.Magnitude):
        def channel_scores(self, group, modules):
            return 0 * super().channel_scores(group, modules)

    loop = Loop(lambda: Residual(16), criterion=Nothing(), reactivate=0.5, budget="macs=40%")
    for _ in range(2):
        active = loop.iee.plan.keep
        loop.until("explore")
        pruned, brought = loop.iee.plan.keep, loop.iee.state()[1]["wide"]
        assert all({*pruned[g]} <= {*active[g]} for g in pruned)
        loop.until("estimate")
        assert all({*pruned[g]} <= {*k} <= {*brought[g]} for g, k in loop.iee.plan.keep.items())


def test_scores_do_not_depend_on_the_network_they_are_taken_on():
    model = randomise(Residual(16)).double().train()
    graph = pk.trace(model, image().double())
    model.train()
    plan = pk.ChannelPlan.random(graph, 0.5, 3)
    small, masked, inside = pk.slim(model, plan), copy.deepcopy(model), belongs(model, graph, plan)
    with torch.no_grad():
        for name, tensor in masked.named_parameters():
            tensor *= inside[name]
    dense = pk.ChannelPlan.dense(graph)
    for name in while_training():
        criterion = criteria.get(name)()
        routes = {
            "graph": (Accumulator(graph, criterion), model),
            "wide": (Accumulator(narrowed(graph, dense), criterion), model),
            "slim": (Accumulator(narrowed(graph, plan), criterion), small),
            "masked": (Accumulator(graph, criterion), masked),
        }
        found = {}
        for route, (accumulator, network) in routes.items():
            for step in range(2):
                network.zero_grad()
                F.cross_entropy(network(batch(step)[0]), batch(step)[1]).backward()
                assert accumulator.add(network)
            found[route] = accumulator.scores().by_group
        for group, values in found["graph"].items():
            np.testing.assert_array_equal(values, found["wide"][group])
            if name != "random":  # which draws by the writer's bytes
                np.testing.assert_allclose(
                    found["masked"][group][list(plan.keep[group])],
                    found["slim"][group],
                    rtol=1e-5,
                    err_msg=name,
                )


@pytest.mark.parametrize("name", ["taylor", "magnitude"])
def test_scores_are_averages_alike_in_both_stages_however_long_they_are(name):
    criterion = criteria.get(name)()
    found = {}
    for estimate, explore in ((1, 1), (4, 1), (1, 5)):
        asked = Asked()
        loop = Loop(
            *(lambda: Residual(16), "still", "macs=50%", criterion),
            start="dense",
            approach=0.0,
            solver=asked,
            same_batch=True,
            warmup=0,
            estimate=estimate,
            improve=0,
            explore=explore,
        )
        loop.until("explore")
        active = loop.iee.plan
        loop.run(explore)
        found[estimate, explore] = asked.scores(0), asked.scores(1)
    pruned, grown = found[1, 1]
    assert pruned.keys() == grown.keys() == {"stem", "conv1"}
    for other in found.values():
        for group in pruned:
            np.testing.assert_allclose(other[0][group], pruned[group], rtol=1e-6)
            np.testing.assert_allclose(other[1][group], grown[group], rtol=1e-6)
    # nothing has moved: an inactive channel scores in stage 4 what it scored while all were active
    model = copy.deepcopy(loop.model)
    accumulator = Accumulator(loop.graph, criterion)
    model.zero_grad()
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    accumulator.add(model)
    for group, values in accumulator.scores().by_group.items():
        asleep = np.setdiff1d(np.arange(16), active.keep[group])
        ranked = -np.sort(-values)[-len(pruned[group]) :]  # above the floor
        np.testing.assert_allclose(pruned[group], ranked, rtol=1e-6)
        np.testing.assert_allclose(grown[group], -np.sort(-values[asleep]), rtol=1e-6)


@pytest.mark.parametrize("name", while_training())
def test_every_criterion_works_and_repeats(name):
    runs = [Loop(criterion=criteria.get(name)(), until=0.6).run(30).iee for _ in range(2)]
    assert runs[0].plan == runs[1].plan
    assert runs[0].history == runs[1].history
    assert len(runs[0].history) == 2
    for key, tensor in tensors(runs[0].slim).items():
        assert torch.equal(tensor, tensors(runs[1].slim)[key])


def test_how_much_changes_hands():
    schedule = pk.IEESchedule(1000, omega=0.4, omega_end=0.1, warmup=0, until=0.8)
    last = schedule.updates - 1
    course = {
        kind: [replace(schedule, decay=kind).omega_at(c) for c in range(last + 3)]
        for kind in ("exponential", "cosine", "constant")
    }
    assert set(course.pop("constant")) == {0.4}
    for found in course.values():
        assert (found[0], found[last]) == pytest.approx((0.4, 0.1))
        assert found[last:] == pytest.approx([0.1] * 3)
        assert found[: last + 1] == sorted(found[: last + 1], reverse=True)
    assert np.diff(np.log(course["exponential"][: last + 1])) == pytest.approx(
        math.log(0.25) / last
    )
    assert course["cosine"][last // 2 + 1] == pytest.approx(
        0.25 - 0.15 * math.sin(math.pi / 2 / last)
    )
    assert replace(schedule, omega=0.0).omega_at(3) == 0
    assert replace(schedule, omega=0.05, decay="cosine").omega_at(last) == pytest.approx(0.05)
    assert all(replace(schedule, omega_end=0.0).omega_at(c) > 0 for c in range(last))
