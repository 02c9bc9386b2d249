"""IEE: what each stage may change, against a dense network with masks and the plans alone."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_nets import (
    Concat,
    Depthwise,
    Flatten,
    PreActivation,
    Residual,
    Slopes,
    SqueezeExcite,
    Tokens,
    image,
    randomise,
)
from iee_loop import Loop, batch, belongs, copied, lifted, tensors
from torch import nn

import prunekit as pk
from prunekit.allocation.costs import MacsCost, ParamsCost
from prunekit.allocation.solvers import Uniform
from prunekit.core.plan import narrowed
from prunekit.criteria import Accumulator
from prunekit.networks.slimming import WHOLE, kept
from prunekit.pruning.history import overlap
from prunekit.support.errors import InfeasibleError, UsageError
from prunekit.support.registry import criteria

# --- what belongs to the active structure


@pytest.mark.parametrize(
    "make",
    [Residual, PreActivation, Depthwise, Concat, SqueezeExcite, Flatten, Slopes, Tokens],
    ids=lambda make: make.__name__,
)
def test_an_element_is_active_when_all_its_channels_are(make):
    model = randomise(make())
    graph = pk.trace(model, torch.randn(1, 5, 6) if make is Tokens else image())
    plans = [pk.ChannelPlan.random(graph, 0.5, seed) for seed in range(4)]
    some = plans[0]
    both = {g: sorted({*k} | {*plans[1].keep[g]}) for g, k in some.keep.items()}
    plans += [pk.ChannelPlan.dense(graph), wider := pk.ChannelPlan.from_keep(graph, both)]
    assert not some.is_dense
    for plan in plans:
        parts, small = kept(model, plan), tensors(pk.slim(model, plan))
        inside = belongs(model, graph, plan)
        assert parts.keys() <= inside.keys()
        for name, tensor in tensors(model).items():
            part = parts.get(name, WHOLE)
            found = torch.zeros_like(tensor)
            part.put_(found, torch.ones_like(small[name]))
            assert torch.equal(found.bool(), inside[name]), name
            assert torch.equal(
                lifted(inside[name], small[name])[inside[name]], tensor[inside[name]]
            )
            assert torch.equal(part.take(tensor), small[name])
    # the same elements, counted in a network that lacks others
    inner, outer = kept(model, some), kept(model, wider)
    for name, tensor in tensors(model).items():
        within = inner.get(name, WHOLE).within(outer.get(name, WHOLE))
        assert torch.equal(
            within.take(outer.get(name, WHOLE).take(tensor)), inner.get(name, WHOLE).take(tensor)
        )


# --- training the slim network is training the dense one under masks


class Masked:
    """IEE's training on the dense network with masks: slow, plain, and written separately."""

    def __init__(self, loop, kind, *, momentum="kept"):
        self.model, self.kind, self.fresh = copy.deepcopy(loop.model), kind, momentum == "zero"
        parameters = dict(self.model.named_parameters())
        self.first = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.second = copied(self.first)
        self.count = self.explored = 0

    def step(self, number, inside, exploring):
        """One step in which only what is free changes."""
        if self.fresh and exploring != bool(self.explored):  # it begins, or it is over
            asleep = {n: ~m for n, m in inside.items()} if exploring else self.asleep
            for name, moment in [*self.first.items(), *self.second.items()]:
                moment[asleep[name]] = 0
            self.asleep = asleep
        if not exploring:
            self.explored = 0
        net = copy.deepcopy(self.model).train()
        if not exploring:
            for name, tensor in net.named_parameters():
                tensor.data *= inside[name]
        inputs, labels = batch(number)
        F.cross_entropy(net(inputs), labels).backward()
        self.count += not exploring
        self.explored += exploring
        time = self.count + self.explored
        if exploring and self.fresh:
            time = self.explored
        for name, parameter in self.model.named_parameters():
            free = ~inside[name] if exploring else inside[name]
            gradient = dict(net.named_parameters())[name].grad
            moved = self.moved(name, parameter.data, gradient, free, time)
            parameter.data[free] = moved[free]
        for name, tensor in self.model.named_buffers():
            free = ~inside[name] if exploring else inside[name]
            if tensor.is_floating_point():
                tensor[free] = dict(net.named_buffers())[name][free]

    def moved(self, name, value, gradient, free, time):
        if self.kind == "sgd":
            gradient = gradient + 1e-2 * value
            self.first[name][free] = (0.9 * self.first[name] + gradient)[free]
            return value - 0.05 * (gradient + 0.9 * self.first[name])
        self.first[name][free] = (0.9 * self.first[name] + 0.1 * gradient)[free]
        self.second[name][free] = (0.999 * self.second[name] + 0.001 * gradient**2)[free]
        mean = self.first[name] / (1 - 0.9**time)
        spread = (self.second[name] / (1 - 0.999**time)).sqrt() + 1e-8
        return value * (1 - 1e-2 * 0.1) - 1e-2 * mean / spread


@pytest.mark.parametrize(
    ("make", "optimizer", "options"),
    [
        (Residual, "sgd", {}),
        (Residual, "adamw", {}),
        (Residual, "adamw", {"momentum": "zero"}),
        (Depthwise, "sgd", {"start": "dense"}),
        (Depthwise, "adamw", {"improve": 0}),
        (Concat, "sgd", {"momentum": "zero"}),
        (Flatten, "adamw", {}),
    ],
)
def test_slim_training_equals_masked_training_of_the_dense_network(make, optimizer, options):
    loop = Loop(make, optimizer, **options)
    _ = loop.iee.plan
    masked = Masked(loop, optimizer, momentum=options.get("momentum", "kept"))
    key = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[optimizer]
    seen = set()
    while loop.done < 30:
        exploring = loop.iee.stage == "explore"
        network, inside = loop.iee.model, loop.inside()
        seen.add(loop.iee.stage)
        loop.backward()
        loop.iee.step(loop.optimizer)
        masked.step(loop.done, inside, exploring)
        loop.done += 1
        held = tensors(masked.model)
        where = {n: torch.ones_like(m) for n, m in inside.items()} if exploring else inside
        for name, tensor in network.named_parameters():
            found = lifted(where[name], tensor)[where[name]]
            assert torch.allclose(found, held[name][where[name]], rtol=1e-7, atol=1e-9), name
        for name, tensor in network.named_buffers():
            if tensor.is_floating_point():
                free = ~inside[name] if exploring else inside[name]
                found = lifted(where[name], tensor)[free]
                assert torch.allclose(found, held[name][free], rtol=1e-7, atol=1e-9), name
        if loop.iee.model is network and not exploring:
            for name, state in loop.state().items():
                found = lifted(inside[name], state[key])
                expected = masked.first[name] * inside[name]
                assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9), name
    assert seen >= {"warm-up", "estimate", "explore", "final"}
    assert len(loop.iee.history) == (3 if "improve" not in options else 4)
    assert sum(row["grown"] for row in loop.iee.history) > 3


@pytest.mark.parametrize("make", [Residual, Depthwise, Flatten], ids=lambda make: make.__name__)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_exploring_leaves_the_active_structure_as_it_is_bit_for_bit(make, optimizer, norm):
    loop = Loop(make, optimizer, norm=norm)
    for _ in range(2):
        loop.until("improve").run(1)
        before = loop.state()
        assert loop.iee.stage == "improve"
        loop.step()
        assert loop.iee.stage == "explore"
        inside, slim, outside = loop.inside(), loop.iee.slim, 0
        held = copied(tensors(slim))
        states = {n: {k: v.clone() for k, v in s.items()} for n, s in before.items()}
        probe = copy.deepcopy(slim).eval()
        answers = probe(batch(99)[0])
        wide = loop.iee.model
        start = copied(tensors(wide))
        while loop.iee.stage == "explore":
            loop.step()
            assert loop.iee.slim is not wide
            for name, parameter in wide.named_parameters():
                now, was = parameter.detach(), start[name]
                assert torch.equal(now[inside[name]], was[inside[name]]), name
                outside += int((now != was)[~inside[name]].sum())
            if loop.iee.stage == "explore":
                assert loop.iee.slim is slim
                assert all(torch.equal(t, held[n]) for n, t in tensors(slim).items())
        assert outside > 100
        # and what the grown network has of it, statistics and momentum included, is still that
        now = loop.inside()
        grown = tensors(loop.iee.model)
        for name, tensor in held.items():
            assert torch.equal(lifted(now[name], grown[name])[inside[name]], tensor.reshape(-1)), (
                name
            )
        for name, state in loop.state().items():
            for key, value in state.items():
                if value.ndim:
                    found = lifted(now[name], value)[inside[name]]
                    assert torch.equal(found, states[name][key].reshape(-1)), (name, key)
        assert torch.equal(answers, copy.deepcopy(slim).eval()(batch(99)[0]))


def test_only_what_explores_has_a_gradient_to_clip():
    loop = Loop(optimizer="adamw").until("explore")
    inside = loop.inside()
    loop.backward()
    before = {n: p.grad.clone() for n, p in loop.iee.model.named_parameters()}
    loop.iee.after_backward(loop.iee.model, loop.done)
    for name, parameter in loop.iee.model.named_parameters():
        assert before[name][inside[name]].any()
        assert not parameter.grad[inside[name]].any()
        assert torch.equal(parameter.grad[~inside[name]], before[name][~inside[name]])


def test_a_scaler_of_mixed_precision_changes_nothing_and_leaves_overflows_out():
    plain, scaled = Loop(), Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(spoilt=False):
        inputs, labels = batch(scaled.done)
        scaler.scale(F.cross_entropy(scaled.iee.model(inputs), labels)).backward()
        if spoilt:
            next(scaled.iee.model.parameters()).grad.fill_(math.inf)
        scaled.iee.step(scaled.optimizer, scaler=scaler)
        scaled.done += 1

    for _ in range(30):
        plain.step()
        step()
        assert scaled.iee.plan == plain.iee.plan
    assert scaled.iee.stage == "final"
    for name, value in tensors(plain.iee.slim).items():
        assert torch.equal(tensors(scaled.iee.slim)[name], value), name
    before = copied(dict(scaled.iee.model.named_parameters()))
    step(spoilt=True)
    for name, parameter in scaled.iee.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_inactive_neither_changes_nor_matters_while_the_rest_trains(optimizer):
    plain, other = Loop(optimizer=optimizer), Loop(optimizer=optimizer)
    inside = plain.inside()
    with torch.no_grad():
        for name, tensor in tensors(other.model).items():
            if tensor.is_floating_point():
                tensor[~inside[name]] = 7.0
    assert other.iee.plan == plain.iee.plan
    for _ in range(2):
        held = copied(tensors(other.model))
        outside = {n: ~m for n, m in other.inside().items()}
        while plain.iee.stage != "explore":
            before = plain.iee.plan
            plain.step()
            other.step()
            assert plain.iee.plan == other.iee.plan  # the decision to prune included
            if plain.iee.stage == "explore":
                break
            for name, tensor in tensors(plain.iee.model).items():
                assert torch.equal(tensor, tensors(other.iee.model)[name]), name
            if plain.iee.plan != before:
                assert plain.iee.stage == "improve"
        for name, tensor in tensors(other.model).items():
            assert torch.equal(tensor[outside[name]], held[name][outside[name]]), name
        plain.until("estimate")
        other.until("estimate")
        # what grew differs, so that the second time both start from one network
        other = copy.deepcopy(plain)
        inside = plain.inside()
        with torch.no_grad():
            for name, tensor in tensors(other.model).items():
                if tensor.is_floating_point():
                    tensor[~inside[name]] -= 3.0


# --- decisions


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
    for name in sorted(criteria.names()):
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


@pytest.mark.parametrize("name", sorted(criteria.names()))
def test_every_criterion_works_and_repeats(name):
    runs = [Loop(criterion=criteria.get(name)(), until=0.6).run(30).iee for _ in range(2)]
    assert runs[0].plan == runs[1].plan
    assert runs[0].history == runs[1].history
    assert len(runs[0].history) == 2
    for key, tensor in tensors(runs[0].slim).items():
        assert torch.equal(tensor, tensors(runs[1].slim)[key])


# --- options


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


def test_without_exploring_nothing_is_trained_in_its_one_step():
    loop = Loop(exploring=False, optimizer="adamw")
    while loop.iee.stage != "final":
        loop.until("explore")
        slim, start = (
            copied(tensors(loop.iee.slim)),
            copied(dict(loop.iee.model.named_parameters())),
        )
        inside, wide = loop.inside(), loop.iee.model
        loop.step()
        assert loop.iee.stage != "explore"
        assert all(torch.equal(p, start[n]) for n, p in wide.named_parameters())
        now = loop.inside()
        for name, tensor in tensors(loop.iee.model).items():
            assert torch.equal(lifted(now[name], tensor)[inside[name]], slim[name].reshape(-1))
    assert [row["step"] for row in loop.iee.history] == [8, 14, 20, 26]
    assert sum(row["grown"] for row in loop.iee.history) > 0


@pytest.mark.parametrize("grow", ["explored", "mru"])
@pytest.mark.parametrize("momentum", ["kept", "zero"])
def test_without_freezing_exploration_trains_everything(grow, momentum):
    loop = Loop(freeze=False, grow=grow, momentum=momentum)
    loop.until("explore")
    inside, start = loop.inside(), copied(tensors(loop.iee.model))
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    changed = 0
    now, grown = loop.inside(), tensors(loop.iee.model)
    for name, tensor in tensors(wide).items():
        mask = inside[name]
        changed += int((tensor != start[name])[mask].sum())
        assert torch.equal(lifted(now[name], grown[name])[mask], tensor.detach()[mask]), name
    assert changed > 100


def test_batchnorm_explores_with_running_statistics_when_asked():
    loop = Loop(norm="running")
    loop.until("explore")
    start = copied(dict(loop.iee.model.named_buffers()))
    norms = [m for m in loop.iee.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert not any(norm.training for norm in norms)
    assert loop.iee.model.conv1.training
    while loop.iee.stage == "explore":
        wide = loop.iee.model
        loop.step()
    assert all(torch.equal(b, start[n]) for n, b in wide.named_buffers())
    assert all(module.training for module in loop.iee.model.modules())
    batchwise = Loop().until("explore")
    start = copied(dict(batchwise.iee.model.named_buffers()))
    batchwise.run(1)
    now = dict(batchwise.iee.model.named_buffers())
    assert not torch.equal(now["bn.running_mean"], start["bn.running_mean"])


def test_updates_stop_once_the_structure_has_settled():
    same = Loop(stop_iou=1.0, omega=0.0).run(30).iee  # the first update fills the budget up
    assert [row["iou"] == 1 for row in same.history] == [False, True]
    assert same.stage == "final"
    early = Loop(stop_iou=0.3).run(30).iee
    assert (early.stage, len(early.history)) == ("final", 1)
    assert len(Loop(stop_iou=1.0).run(30).iee.history) == 3
    # from the dense network not before the budget has come down
    dense = Loop(stop_iou=0.1, start="dense", approach=1.0).run(30).iee
    assert len(dense.history) == 3


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


def test_stage_lengths_divide_the_time_among_the_cycles():
    schedule = pk.IEESchedule(3200)
    assert schedule.warm == 400
    assert schedule.lengths == (53, 14, 9)
    assert schedule.updates == 20
    often = pk.IEESchedule(3200, cycles=40)
    assert (often.lengths, often.updates) == ((27, 7, 5), 38)
    dense = pk.IEESchedule(3200, start="dense")
    assert (dense.warm, dense.lengths, dense.last_step) == (0, (45, 12, 8), 0.4 * 3200)
    assert pk.IEESchedule(3200, estimate=10, improve=0, explore=5).lengths == (10, 0, 5)
    assert pk.IEESchedule(3200, exploring=False).lengths[2] == 1
    short = pk.IEESchedule(4)
    assert (short.warm, short.lengths, short.updates) == (0, (2, 1, 1), 1)
    assert pk.IEESchedule(100, until=0.0).updates == 1


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
    for options, message in (
        ({"nonsense": "1"}, "unknown IEE option 'nonsense'; known: warmup, cycles, estimate"),
        ({"steps": "9"}, "unknown IEE option 'steps'"),
        ({"omega": "much"}, "IEE option `omega`: "),
        ({"explore": "2.5"}, "IEE option `explore`: "),
        ({"grow": "best"}, "grow"),
        ({"omega": "2"}, "`omega` must be from 0 to 1, not 2.0"),
        ({"seed": "-1"}, "`seed` must be"),
    ):
        with pytest.raises(UsageError) as caught:
            pk.IEESchedule.parse(100, options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


# --- what is told


def test_work_is_what_the_networks_in_use_multiply():
    loop, macs, dense = Loop(reactivate=0.5), 0, 0
    table = {layer.name: layer for layer in loop.graph.layers}
    assert set(table) == {"stem", "conv1", "conv2", "fc"}
    while loop.done < 30:
        network = loop.iee.model
        for name, layer in table.items():
            weights = {
                "small": getattr(network, name).weight,
                "dense": getattr(loop.model, name).weight,
            }
            area = math.prod(layer.shape.out_hw) if layer.shape.out_hw else 1
            macs += weights["small"].numel() * area
            dense += weights["dense"].numel() * area
        loop.step()
        assert loop.iee.work == pytest.approx(30 * macs / dense * loop.done / 30 / 1)


def test_the_log_tells_what_the_structures_were():
    criterion = criteria.get("random")()
    loop = Loop(lambda: Residual(16), criterion=criterion, omega=0.6, decay="constant")
    begin, grown, ever, rows, cycle = loop.iee.plan, None, {}, [], 0
    while loop.iee.stage != "final":
        stage, plan = loop.iee.stage, loop.iee.plan
        loop.step()
        if stage == "estimate" != loop.iee.stage:
            begin = plan
        if stage == "explore" != loop.iee.stage:
            now = loop.iee.plan
            (row,) = loop.iee.rows()
            rows.append(row)
            pairs = [(g, c) for g in now.keep for c in now.keep[g]]
            before = [(g, c) for g in begin.keep for c in begin.keep[g]]
            assert row["iou"] == len({*pairs} & {*before}) / len({*pairs} | {*before})
            assert row["iou"] == overlap(begin, now) == overlap(now, begin)
            active = {(g, c) for g in plan.keep for c in plan.keep[g]}
            if grown:
                assert row["survival"] == len(grown & active) / len(grown)
            else:
                assert row["survival"] is None
            grown = {*pairs} - active
            ever |= dict.fromkeys(grown)
            assert row["grown"] == len(grown)
            assert loop.iee.survival() == len(ever.keys() & {*pairs}) / len(ever)
            assert row["widths"] == {g: len(now.keep[g]) for g in ("stem", "conv1")}
            assert row["predicted_ratio"] == pytest.approx(loop.cost(now.widths) / loop.cost({}))
            assert (row["stage"], row["step"], row["cycle"]) == ("update", loop.done, cycle)
            assert row["relative_flops"] == loop.iee.work / 30
            assert row["omega"] == loop.iee.schedule.omega_at(cycle)
            cycle += 1
    assert rows == loop.iee.history
    assert loop.iee.rows() == []
    assert any(0 < row["iou"] < 1 for row in rows)
    assert any(0 < (row["survival"] or 0) < 1 for row in rows)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_a_validation_while_exploring_leaves_the_next_network_in_training_mode(norm):
    torch.manual_seed(0)
    model = randomise(Residual(12)).train().float()
    graph = pk.trace(model, image().float())
    schedule = pk.IEESchedule(30, warmup=2, estimate=3, improve=2, explore=3, norm=norm)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    seen = set()
    for step in range(30):
        if iee.stage == "explore":
            iee.slim.eval()
        assert iee.model.training
        norms = [m for m in iee.model.modules() if isinstance(m, nn.BatchNorm2d)]
        frozen = norm == "running" and iee.stage == "explore"
        assert {m.training for m in norms} == {not frozen}
        seen.add(iee.stage)
        inputs, labels = batch(step, dtype=torch.float32)
        F.cross_entropy(iee.model(inputs), labels).backward()
        iee.step(optimizer)
    assert {"estimate", "explore"} <= seen


def test_a_loss_of_another_network_is_named():
    model = randomise(Residual(12)).train().float()
    graph = pk.trace(model, image().float())
    schedule = pk.IEESchedule(30, warmup=2, estimate=3, improve=2, explore=3)
    iee = pk.IEE(model, graph, None, pk.Budget.parse("macs=50%"), schedule=schedule)
    inputs, labels = batch(0, dtype=torch.float32)
    stale = iee.model
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def train():
        for _ in range(30):
            F.cross_entropy(stale(inputs), labels).backward()
            iee.step(optimizer)
            stale.zero_grad(set_to_none=True)

    with pytest.raises(UsageError, match=r"run the loss of every step on `iee\.model`"):
        train()
