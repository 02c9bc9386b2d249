"""Whatever network: the slim one is the masked one, as wide and as cheap as predicted."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import prunekit as pk
from prunekit.core.role import IN, OUT
from support.checking import ATTENTIONS, EXACT, traced
from support.random_nets import (
    KINDS,
    MAKERS,
    OPENS,
    PLAIN,
    TRAPS,
    Recipe,
    build,
    example,
    random_recipe,
    sandwich,
    smallest,
)

NETS = int(os.environ.get("PRUNEKIT_NETS", "200"))
FIRST = int(os.environ.get("PRUNEKIT_FIRST_NET", "0"))
SEEDS = range(FIRST, FIRST + NETS)
PLAIN_SEEDS = range(10_000 + FIRST, 10_000 + FIRST + max(1, NETS // 4))
PLANS = 3
TOLERANCE = 1e-6

UNSEEN = frozenset({"literal_attention", "numbered", "counted"})
MAY_FREEZE = {
    "channel_mean": "it changes with the number of channels",
    "channel_max": "a removed channel's zero may be the greatest",
    "literal_attention": "its code names the number of heads",
    "transposed_grouped": "rarer than it is worth",
    "token_norm": "statistics over channels",
    "map_layer_norm": "statistics over channels",
    "group_norm": "statistics over channels",
    "pre_norm_mlp": "statistics over channels",
    "convnext": "statistics over channels",
    "dense_norm": "statistics over channels",
    "tied_transposed": "a weight used outside its layer",
    "weight_alone": "a weight used outside its layer",
    **dict.fromkeys(("maxout", "stack"), "nobody asked for them"),
    **dict.fromkeys(TRAPS, "not channel by channel, or by the channel's number"),
}
"""Kinds that may freeze the channels they touch, and why; even then nothing may be wrong."""
FREE = tuple(kind for kind in KINDS if kind not in MAY_FREEZE)

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def run(model, given):
    if isinstance(given, dict):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in (value.values() if isinstance(value, dict) else value) for t in leaves(v)]


def structure(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: structure(v) for key, v in value.items()}
    return type(value)(structure(v) for v in value)


def doubled(given):
    if isinstance(given, dict):
        return {key: value.double() for key, value in given.items()}
    return tuple(v.double() for v in given) if isinstance(given, tuple) else given.double()


def random_plan(graph, number):
    """Any width a group may take, odd ones first; plan 0 narrows every group."""
    rng = np.random.default_rng(number)
    keep = {}
    for group in graph.groups:
        if not group.prunable:
            continue
        narrower = [w for w in group.widths() if w < group.size]
        odd = [w for w in narrower if w % 2]
        options = (odd if odd and rng.random() < 0.7 else narrower) or [group.size]
        if number and rng.random() < 0.3:
            options = [group.size]
        width = options[int(rng.integers(len(options)))]
        keep[group.id] = rng.permutation(group.size)[:width].tolist()
    return pk.ChannelPlan.from_keep(graph, keep)


def physical(module, side):
    return getattr(module, f"{side}_{'features' if isinstance(module, nn.Linear) else 'channels'}")


def measured(model, given):
    """Output, and by layer: multiply-accumulates of one sample's calls, and their sizes.

    A transposed convolution works per position of its input. A layer that is never called works
    where its weight is multiplied with.
    """
    macs: Counter[str] = Counter()
    sizes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    outside = Products(model)
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):

            def hook(module, given, out, name=name):
                at = given[0] if getattr(module, "transposed", False) else out
                size = tuple(at.shape[1:-1] if isinstance(module, nn.Linear) else at.shape[2:])
                sizes[name].append(size)
                macs[name] += module.weight.numel() * math.prod(size)

            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad(), outside:
        out = run(model, given)
    for handle in hooks:
        handle.remove()
    for name in outside.sizes.keys() - sizes.keys():
        sizes[name] = outside.sizes[name]
        weight = model.get_submodule(name).weight
        macs[name] = sum(weight.numel() * math.prod(size) for size in sizes[name])
    return out, macs, sizes


class Products(TorchFunctionMode):
    """Sizes of the matrix products of tokens with a linear layer's own weight, by the layer."""

    def __init__(self, model):
        super().__init__()
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        self.layers = {m.weight.data_ptr(): n for n, m in linear.items()}
        self.sizes = defaultdict(list)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        del types
        out = function(*args, **(kwargs or {}))
        if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, F.linear):
            name = self.layers.get(args[1].data_ptr())
            if name is not None:
                self.sizes[name].append(tuple(out.shape[1:-1]))
        return out


def heads(group):
    """Whether the group's channels are the network's outputs."""
    return any(m.module in ("head", "side") and m.role == OUT for m in group.members)


def structural(graph):
    """What is wrong with the graph by itself: positions out of range, or in two groups."""
    taken: set[tuple[str, str, int]] = set()
    for group in graph.groups:
        for member in group.members:
            if member.index.ndim != 2 or len(member.index) != group.size:
                return f"{group.id} has {group.size} channels, {member.module} an index for others"
            entries = {(member.module, member.role, int(p)) for p in member.index.ravel()}
            if len(entries) != member.index.size or entries & taken:
                return f"{member.module} ({member.role}) has channels in two places"
            taken |= entries
    for layer in graph.layers:
        for side in ("in", "out"):
            spans = layer.in_spans if side == "in" else layer.out_spans
            full = layer.in_channels if side == "in" else layer.out_channels
            if sum(s.size * s.repeat for s in spans) > full:
                return f"the spans of {layer.name} are wider ({side}) than its {full} channels"
    if not all(group.prunable or group.reason for group in graph.groups):
        return "a group is frozen without a reason"
    return ""


@functools.cache
def wrong(recipe: Recipe, heads: str = "whole") -> str:
    """What is wrong with the traced network under random plans ("sort: text"), or nothing."""
    try:
        graph = traced(recipe, heads)
    except Exception as error:
        return f"trace: {type(error).__name__}: {error}"
    return misfit(build(recipe), example(recipe), example(recipe, 3), graph)


def misfit(model, given, batch, graph, plans=PLANS) -> str:
    """What is wrong with ``graph`` as that of ``model``; ``batch`` is an input for training."""
    model, given, batch = copy.deepcopy(model).double(), doubled(given), doubled(batch)
    if problem := structural(graph):
        return f"graph: {problem}"
    dense, macs, sizes = measured(model, given)
    for layer in graph.layers:
        predicted = layer.macs(layer.in_channels, layer.out_channels)
        if macs[layer.name] != predicted:
            return f"dense macs: {layer.name} does {macs[layer.name]}, predicted {predicted}"
    for number in range(plans):
        plan = random_plan(graph, number)
        try:
            found = differs(model, given, batch, graph, plan, structure(dense), sizes)
        except Exception as error:
            found = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        if found:
            return f"{found} (plan {number}: {plan.widths})"
    return ""


def differs(model, given, batch, graph, plan, shapes, sizes):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = pk.slim(model, plan)
    masked = pk.mask_(copy.deepcopy(model), plan)
    if any(not torch.equal(before[name], t) for name, t in model.state_dict().items()):
        return "touched: slim changes the model it was given"
    if list(small.state_dict()) != list(before):
        return "names: those of the state change"
    found, macs, now = measured(small, given)
    if structure(found) != shapes:
        return f"shape: the output's changes from {shapes} to {structure(found)}"
    with torch.no_grad():
        if far := apart(run(masked, given), found):
            return f"masked: differs from slim by {far:.1e}"
        if far := apart(run(masked.train(), batch), run(copy.deepcopy(small).train(), batch)):
            return f"training: masked differs from slim by {far:.1e}"
    modules = dict(small.named_modules())
    for layer in graph.layers:
        into, out = (layer.width(side, plan.widths) for side in ("in", "out"))
        module = modules[layer.name]
        real = physical(module, "in"), physical(module, "out")
        if (into, out) != real:
            return f"width: {layer.name} is {real[0]} -> {real[1]}, predicted {into} -> {out}"
        count = sum(t.numel() for t in (module.weight, module.bias) if t is not None)
        if layer.params(into, out) != count:
            return f"params: {layer.name} has {count}, predicted {layer.params(into, out)}"
        predicted = layer.macs(into, out)
        # a layer over positions runs once per channel, and on fewer of those than in the trace
        fits = macs[layer.name] == predicted
        if now[layer.name] != sizes[layer.name]:
            fits = macs[layer.name] <= predicted
        if not fits:
            return f"macs: {layer.name} does {macs[layer.name]}, predicted {predicted}"
    return ""


def apart(expected, found):
    """The largest relative difference, where it is too large."""
    far = 0.0
    for left, right in zip(leaves(expected), leaves(found), strict=True):
        one = float((left - right).abs().max() / left.abs().max().clamp_min(1e-12))
        far = one if not one <= far else far
    return far if not far <= TOLERANCE else 0.0


def check(recipe: Recipe, heads: str = "whole"):
    if problem := wrong(recipe, heads):
        sort = problem.split(":")[0]  # the same sort of failure, not just any
        small = smallest(recipe, lambda other: wrong(other, heads).split(":")[0] == sort)
        pytest.fail(
            f"{wrong(small, heads)}\n{small!r}\n{build(small)}\nfound in {recipe!r}: {problem}"
        )


@pytest.mark.parametrize("seed", SEEDS, ids="net-{}".format)
def test_the_slim_network_is_the_masked_one_and_as_predicted(seed):
    check(random_recipe(seed))


@pytest.mark.parametrize("seed", PLAIN_SEEDS, ids="plain-{}".format)
def test_a_plain_network_freezes_its_outputs_only(seed):
    recipe = random_recipe(seed, PLAIN)
    check(recipe)
    graph = traced(recipe)
    prunable = [group for group in graph.groups if group.prunable]
    least = 1 + sum(OPENS.get(kind, 0) for kind, _ in recipe.steps)
    assert len(prunable) >= least, [(g.id, g.reason) for g in graph.groups]
    frozen = [(g.id, g.reason) for g in graph.groups if not (g.prunable or heads(g)) and g.size > 1]
    assert not frozen


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_in_a_plain_network(kind):
    """Right for every kind alone, and the channels that enter it can be pruned."""
    recipe = sandwich(kind)
    check(recipe)
    if kind in MAY_FREEZE:
        return
    graph, steps = traced(recipe), build(recipe).steps
    here = len(steps) - 2
    layered = [
        i for i, step in enumerate(steps) if any(isinstance(m, LAYERS) for m in step.modules())
    ]
    before = max(i for i in layered if i < here)
    for i in (before, here) if here in layered else (before,):
        written = [
            group
            for group in graph.groups
            if any(m.module.startswith(f"steps.{i}.") and m.role != IN for m in group.members)
        ]
        assert any(group.prunable for group in written), [(g.id, g.reason) for g in written]


@pytest.mark.parametrize("number", range(4), ids="sort-{}".format)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_heads_that_become_narrower(kind, number):
    """Right for every kind of attention; of one that is followed every channel of a head may go."""
    recipe = sandwich(kind, 50 * number)
    check(recipe, "width")
    block = f"steps.{len(recipe.steps) - 2}"
    written = [
        group
        for group in traced(recipe, "width").groups
        if any(m.module.startswith(block) and m.role == OUT for m in group.members)
    ]
    assert len(written) > 1
    assert all(group.prunable for group in written), [(g.id, g.reason) for g in written]


@pytest.mark.parametrize("seed", SEEDS[: NETS // 5], ids="net-{}".format)
def test_networks_whose_heads_become_narrower(seed):
    check(
        random_recipe(seed, ("conv", *(kind for kind in KINDS if "tokens" in MAKERS[kind]))),
        "width",
    )


def test_most_of_each_network_can_be_pruned():
    shares, prunable, total = [], 0, 0
    for seed in SEEDS[:60]:
        graph = traced(random_recipe(seed, FREE))
        shares.append(graph.prunable_macs_share())
        inner = [group for group in graph.groups if not heads(group)]
        prunable += sum(group.size for group in inner if group.prunable)
        total += sum(group.size for group in inner)
    assert np.mean(shares) >= 0.9
    assert prunable / total >= 0.75


@pytest.mark.parametrize("seed", SEEDS[: NETS // 5], ids="net-{}".format)
def test_a_slim_network_is_a_network_like_any_other(seed):
    recipe = random_recipe(seed)
    if wrong(recipe):
        pytest.skip("already wrong before it is slim, as another test says")
    given, graph = example(recipe), traced(recipe)
    small = pk.slim(build(recipe), random_plan(graph, 5))
    again = pk.trace(small, given, validate=not recipe.kinds <= EXACT)
    problem = misfit(small, given, example(recipe, 3), again, plans=1)
    assert not problem, f"{problem}\nof the slim {recipe!r}"


def test_what_no_operator_shows_is_proved():
    assert not EXACT & UNSEEN
    assert MAY_FREEZE.keys() >= UNSEEN


def test_every_kind_occurs_and_recipes_can_be_repeated():
    recipes = [random_recipe(seed) for seed in range(400)]
    counts = Counter(kind for recipe in recipes for kind, _ in recipe.steps)
    assert not [kind for kind in MAKERS if counts[kind] < 3]
    assert (
        {r.inputs for r in recipes} == {r.outputs for r in recipes} == {"tensor", "tuple", "dict"}
    )
    again = eval(repr(recipes[7]), {"Recipe": Recipe})
    one, other = build(recipes[7]).state_dict(), build(again).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_wrong_plan_is_noticed():
    """The comparison has teeth: with one member of each group forgotten, something is reported."""
    noticed = tried = 0
    for seed in PLAIN_SEEDS[:20]:
        recipe = random_recipe(seed, PLAIN)
        graph, model = traced(recipe), build(recipe).double()
        given = doubled(example(recipe))
        batch = doubled(example(recipe, 3))
        dense, _, sizes = measured(model, given)
        plan = random_plan(graph, 0)
        for name in list(plan.cuts)[:3]:
            rest = {k: v for k, v in plan.cuts.items() if k != name}
            broken = pk.ChannelPlan(plan.fingerprint, plan.keep, rest, plan.sizes)
            tried += 1
            try:
                found = differs(model, given, batch, graph, broken, structure(dense), sizes)
                noticed += bool(found)
            except Exception:
                noticed += 1
    assert noticed == tried > 20
