"""What every criterion gives: values by hand, plans, ranks of removed and permuted channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.criteria import MagnitudeL1
from prunekit.support.registry import criteria
from support.nets import (
    Depthwise,
    Flatten,
    PreActivation,
    Residual,
    SqueezeExcite,
    conv,
    image,
    randomise,
)
from support.scoring import (
    FIRST,
    GRADIENT,
    NAMES,
    NO_DATA,
    SECOND,
    batches,
    channels_of,
    linear,
    loss_fn,
    norm,
    scored,
)

# (criterion without normalisation, of FIRST alone, of SECOND alone)
BY_HAND = {
    "magnitude": (pk.Magnitude, [5, 1, 2], [2, 0, 10]),
    "magnitude_l1": (MagnitudeL1, [7, 1, 2], [2, 0, 14]),
    "lamp": (pk.LAMP, [25 / 25, 1 / 30, 4 / 29], [4 / 104, 0, 1]),
    "fpgm": (
        pk.FPGM,
        [18**0.5 + 17**0.5, 18**0.5 + 5**0.5, 17**0.5 + 5**0.5],
        [2 + 72**0.5, 2 + 10, 10 + 72**0.5],
    ),
    "taylor_weight": (pk.TaylorWeight, [7, 2, 1], [2, 0, 59]),
}


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand_alone_and_coupled(name, reduce):
    make, first, second = BY_HAND[name]
    modules = {"a": linear(FIRST), "b": linear(SECOND), "reader": linear([[9.0] * 3] * 2)}
    for layer in (modules["a"], modules["b"]):
        layer.weight.grad = torch.tensor(GRADIENT)
    criterion = make(reduce=reduce, normalize="none")
    assert criterion.name == name
    assert scored(criterion, channels_of("a"), modules) == pytest.approx(first, rel=1e-6)
    coupled = channels_of("a", "b", "reader", roles=["out", "out", "in"])
    expected = {
        "mean": np.mean([first, second], 0),
        "sum": np.sum([first, second], 0),
        "max": np.max([first, second], 0),
    }[reduce]
    assert scored(criterion, coupled, modules) == pytest.approx(expected, rel=1e-6)


class Gated(nn.Module):
    """Every channel is two of the convolution's: one is the other's gate."""

    def __init__(self):
        super().__init__()
        self.c, self.bn, self.fc = conv(3, 12, bias=False), nn.BatchNorm2d(12), nn.Linear(6, 4)

    def forward(self, x):
        value, gate = self.bn(self.c(x)).chunk(2, 1)
        return self.fc((value * gate.sigmoid()).mean((2, 3)))


NETS = {
    "residual": Residual,
    "residual without norms": lambda: Residual(norm=False),
    "pre-activation": PreActivation,
    "depthwise": Depthwise,
    "squeeze-excite": SqueezeExcite,
    "flatten": Flatten,
    "two positions": Gated,
}


def test_built_in_names():
    assert set(NAMES) <= set(criteria.names())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_gives_a_plan(name, net):
    model = randomise(NETS[net]()).double()
    graph = pk.trace(model, image().double())
    scores = pk.score(model, graph, criteria.get(name)(), loss_fn, batches())
    assert scores.criterion == name
    for group in graph.groups:
        if group.prunable:
            values = scores.by_group[group.id]
            assert values.shape == (group.size,)
            assert len(np.unique(values)) == group.size  # no two channels are alike
    found = pk.allocate(graph, scores, None, pk.Budget.parse("macs=60%"))
    assert found.cost <= found.limit < found.dense_cost
    assert not found.plan.is_dense
    for group, kept in found.plan.keep.items():
        if group in scores.by_group:
            best = scores.ranking(group)[: len(kept)]
            assert sorted(best) == list(kept)
    assert pk.slim(model, found.plan)(image().double()).shape == (1, 4)


@pytest.mark.parametrize("net", ["residual", "residual without norms", "depthwise", "flatten"])
@pytest.mark.parametrize("name", NAMES)
def test_removed_channels_score_zero_and_leave_the_others_as_they_rank(name, net):
    model = randomise(NETS[net]()).double()
    graph = pk.trace(model, image().double())
    plan = pk.ChannelPlan.random(graph, keep=0.6, seed=2)
    masked = pk.mask_(model, plan)
    found = pk.score(masked, graph, criteria.get(name)(), loss_fn, batches()).by_group
    for group, values in found.items():
        kept = np.array(plan.keep[group])
        assert (np.delete(values, kept) == 0).all()
        # a rectifier that never fires has no gradient
        assert (values[kept] > 0).all() if name in NO_DATA else (values[kept] > 0).any()
    if name in ("random", "taylor"):
        return
    # the same numbers as those of a network that never had the removed channels
    small = pk.slim(masked, plan)
    graph = pk.trace(small, image().double())
    alone = pk.score(small, graph, criteria.get(name)(), loss_fn, batches()).by_group
    for group, values in alone.items():
        assert found[group][list(plan.keep[group])] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_which_nothing_is_left_scores_zero(name):
    layer, scale = linear([[0.0, 0.0]] * 3), norm([0.0] * 3)
    for parameter in (layer.weight, scale.weight, scale.bias):
        parameter.grad = torch.ones_like(parameter)
    for members in (["a"], ["a", "bn"]):
        group = channels_of(*members, roles=["out", "both"][: len(members)])
        assert (scored(criteria.get(name)(), group, {"a": layer, "bn": scale}) == 0).all()


def test_the_last_live_channel_ranks_above_the_removed():
    layer = linear([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    for name in NO_DATA:
        found = scored(criteria.get(name)(), channels_of("a"), {"a": layer})
        assert found.argmax() == 2, name
        assert (found[:2] == 0).all()


def test_a_channel_lives_while_one_coupled_layer_writes_it():
    modules = {"a": linear(FIRST), "b": linear(SECOND)}  # SECOND has an empty filter
    for name in NO_DATA:
        assert (scored(criteria.get(name)(), channels_of("a", "b"), modules) > 0).all()


@pytest.mark.parametrize("name", [n for n in NO_DATA if n != "random"])
@given(data=st.data())
def test_permuted_channels_have_permuted_scores(name, data):
    size, fan_in = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    numbers = st.integers(-8, 8).map(float)  # with ties and empty filters
    rows = st.lists(numbers, min_size=fan_in, max_size=fan_in)
    layers = [data.draw(st.lists(rows, min_size=size, max_size=size)) for _ in range(2)]
    order = data.draw(st.permutations(range(size)))
    group = channels_of("a", "b", positions=np.arange(size)[:, None])
    criterion = criteria.get(name)()

    found = scored(criterion, group, {n: linear(r) for n, r in zip("ab", layers, strict=True)})
    shuffled = [[rows[i] for i in order] for rows in layers]
    again = scored(criterion, group, {n: linear(r) for n, r in zip("ab", shuffled, strict=True)})
    assert again == pytest.approx(found[list(order)], rel=1e-5, abs=1e-6)
    assert (found >= 0).all()
    empty = [not any(a) and not any(b) for a, b in zip(*layers, strict=True)]
    assert (found[empty] == 0).all()
