"""Criteria: each gives the number it claims to be, and scoring leaves no trace."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_nets import (
    Depthwise,
    Flatten,
    Plain,
    PreActivation,
    Residual,
    SqueezeExcite,
    Tokens,
    conv,
    image,
    randomise,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.core.graph import ChannelGroup, Member
from prunekit.core.role import Role
from prunekit.criteria import Accumulator, MagnitudeL1, fpgm
from prunekit.criteria.base import normalise
from prunekit.support import registry
from prunekit.support.errors import UsageError
from prunekit.support.registry import Registry, criteria


def loss_fn(model, batch):
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def batches(count=3, channels=3):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(4, channels, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(0, 4, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def gated_loss(model, batch, gates, channel, gain):
    """The loss when ``channel`` of every gate module's output is multiplied by ``gain``."""

    def scale(module, args, out):
        factor = torch.ones(out.shape[1], dtype=out.dtype)
        factor[channel] = gain
        return out * factor.view(1, -1, *[1] * (out.ndim - 2))

    handles = [model.get_submodule(name).register_forward_hook(scale) for name in gates]
    try:
        with torch.no_grad():
            return float(loss_fn(model, batch))
    finally:
        for handle in handles:
            handle.remove()


# (network, group, the modules whose outputs are the group's channels at their last norm)
GATES = {
    "BN": (Residual, "conv1", ["bn1"]),
    "BN and a residual": (Residual, "stem", ["bn", "bn2"]),
    "no BN": (lambda: Residual(norm=False), "conv1", ["conv1"]),
    "no BN and a residual": (lambda: Residual(norm=False), "stem", ["stem", "conv2"]),
    "norms that read the channels": (PreActivation, "stem", ["bn", "bn2"]),
    "a flatten": (Flatten, "a", ["a"]),
    "a linear layer": (Flatten, "f", ["f"]),
}


@pytest.mark.parametrize("name", GATES)
def test_taylor_is_the_derivative_with_respect_to_a_channels_gate(name):
    make, group, gates = GATES[name]
    model = randomise(make(), seed=4).double()
    graph = pk.trace(model, image().double())
    data = batches()
    found = pk.score(model, graph, pk.Taylor(), loss_fn, data).by_group[group]
    step = 1e-5
    expected = np.zeros(graph.group(group).size)
    for batch in data:
        for channel in range(len(expected)):
            up = gated_loss(model, batch, gates, channel, 1 + step)
            down = gated_loss(model, batch, gates, channel, 1 - step)
            expected[channel] += abs(up - down) / (2 * step) / len(data)
    assert expected.max() > 1e-3
    # scores are kept in float32 on the way
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_filters_before_a_norm_do_not_count():
    """Without this, training mode would score zero: the loss does not see the filters' scale."""
    model = randomise(Residual()).double()
    graph = pk.trace(model, image().double())
    before = pk.score(model, graph, pk.Taylor(), loss_fn, batches()).by_group["conv1"]
    loss_fn(model.eval(), batches()[0]).backward()
    total = Accumulator(graph, pk.Taylor())
    model.conv1.weight.grad = None
    total.add(model)
    assert total.scores().by_group["conv1"].shape == before.shape


def test_a_removed_channel_scores_zero():
    model = randomise(Residual()).double()
    graph = pk.trace(model, image().double())
    plan = pk.ChannelPlan.from_keep(graph, {"stem": [0, 2, 5], "conv1": [1, 2]})
    found = pk.score(pk.mask_(model, plan), graph, pk.Taylor(), loss_fn, batches())
    for group in ("stem", "conv1"):
        gone = np.setdiff1d(np.arange(8), plan.keep[group])
        assert (found.by_group[group][gone] == 0).all()
        assert (found.by_group[group][list(plan.keep[group])] > 0).all()


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_mean_norm_of_the_coupled_filters(p):
    model = randomise(Residual())
    graph = pk.trace(model, image())
    found = pk.score(model, graph, pk.Magnitude(p=p, normalize="none")).by_group
    for group, convs in (("conv1", [model.conv1]), ("stem", [model.stem, model.conv2])):
        rows = [c.weight.detach().flatten(1).norm(p=p, dim=1) for c in convs]
        assert found[group] == pytest.approx(torch.stack(rows).mean(0).numpy(), rel=1e-6)
    normal = pk.score(model, graph, pk.Magnitude(p=p)).by_group["conv1"]
    assert normal.mean() == pytest.approx(1)
    assert normal == pytest.approx(found["conv1"] / found["conv1"].mean(), rel=1e-6)


def test_magnitude_does_not_read_what_consumes():
    model = randomise(Plain())
    graph = pk.trace(model, image())
    before = pk.score(model, graph, pk.Magnitude(normalize="none")).by_group["c1"]
    with torch.no_grad():
        model.c2.weight.mul_(100)
    after = pk.score(model, graph, pk.Magnitude(normalize="none")).by_group["c1"]
    assert (before == after).all()


def test_scoring_leaves_everything_as_it_was():
    model = randomise(Residual()).double().train()
    model.bn1.eval()  # a norm that its owner froze
    model.conv1.weight.requires_grad_(False)
    graph = pk.trace(model, image().double())
    loss_fn(model, batches()[0]).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for criterion in (pk.Taylor(), pk.Magnitude()):
        pk.score(model, graph, criterion, loss_fn, batches())
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        assert all(p.grad is gradients[n] for n, p in model.named_parameters())
        assert model.training
        assert model.bn.training
        assert not model.bn1.training
        assert not model.conv1.weight.requires_grad
        assert model.conv2.weight.requires_grad


def test_scoring_that_fails_leaves_everything_as_it_was():
    model = randomise(Residual()).train()
    graph = pk.trace(model, image())

    def broken(model, batch):
        raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        pk.score(model, graph, pk.Taylor(), broken, [None])
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_scoring_works_under_no_grad_and_with_frozen_parameters():
    model = randomise(Residual()).double()
    graph = pk.trace(model, image().double())
    expected = pk.score(model, graph, pk.Taylor(), loss_fn, batches()).by_group
    model.requires_grad_(False)
    with torch.no_grad():
        found = pk.score(model, graph, pk.Taylor(), loss_fn, batches()).by_group
    assert all((found[g] == expected[g]).all() for g in expected)


def test_what_is_missing_is_named():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with pytest.raises(UsageError, match="'taylor' needs data: give `loss_fn` and `batches`"):
        pk.score(model, graph, pk.Taylor())
    with pytest.raises(UsageError, match=r"no gradient for bn\.weight, .* no backward pass"):
        Accumulator(graph, pk.Taylor()).add(model)
    with pytest.raises(UsageError, match="no batch was scored"):
        pk.score(model, graph, pk.Taylor(), loss_fn, [])
    with pytest.raises(UsageError, match="`p` must be 1 or 2, not 3"):
        pk.Magnitude(p=3)
    with pytest.raises(UsageError, match="`normalize` must be mean, max, share or none, not 'sum'"):
        pk.Magnitude(normalize="sum")


def test_a_loss_that_is_not_a_number_is_refused():
    model = randomise(Residual()).double()
    graph = pk.trace(model, image().double())
    with pytest.raises(UsageError, match="taylor scores are not finite; check the loss"):
        pk.score(model, graph, pk.Taylor(), lambda m, b: loss_fn(m, b) * float("nan"), batches(1))


def test_tokens_have_scores_too():
    model = randomise(Tokens())
    example = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    graph = pk.trace(model, example)
    found = pk.score(model, graph, pk.Taylor(), lambda m, b: m(b).square().mean(), [example])
    assert {g: v.shape for g, v in found.by_group.items()} == {"a": (12,), "b": (9,)}
    assert found.batches == 1
    assert found.criterion == "taylor"


def test_a_group_without_a_norm_of_its_own_weights():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    graph = pk.trace(model, image())
    found = pk.score(model, graph, pk.Taylor(), lambda m, b: m(b).square().mean(), [image()])
    assert set(found.by_group) == {"0"}


def test_behind_a_depthwise_layer_the_last_norm_is_the_gate():
    """Taylor of a channel that a depthwise layer passes on: the loss against a gate behind it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.uniform_(-0.2, 0.2)
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    graph = pk.trace(net, images[:1])

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = pk.score(net, graph, pk.Taylor(), loss_fn, [(images, labels)]).by_group["0"]
    gate = torch.ones(6, requires_grad=True)
    handle = net[4].register_forward_hook(lambda _m, _a, out: out * gate[:, None, None])
    loss_fn(net, (images, labels)).backward()
    handle.remove()
    np.testing.assert_allclose(found, gate.grad.abs().numpy(), rtol=1e-4, atol=1e-7)


# --- values by hand


def linear(rows):
    """A linear layer with the given filters."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def norm(gammas):
    layer = nn.BatchNorm1d(len(gammas))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(gammas))
    return layer


def channels_of(*names, roles=None, positions=None):
    """A group whose channels lie at the same positions of every module named."""
    index = np.array([[0], [1], [2]] if positions is None else positions)
    members = tuple(
        Member(name, Role.parse(role), index)
        for name, role in zip(names, roles or ["out"] * len(names), strict=True)
    )
    return ChannelGroup("g", len(index), 1, 1, True, members)


def scored(criterion, group, modules):
    """Scores of one group, normalised."""
    with torch.no_grad():
        found = criterion.channel_scores(group, modules).double().numpy()
    return criterion.normalised(found)


FIRST = [[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]]
SECOND = [[0.0, 2.0], [0.0, 0.0], [6.0, 8.0]]
GRADIENT = [[1.0, -1.0], [5.0, 2.0], [-0.5, 7.0]]

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


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("abs", [3 + 4, 2, 1]),
        ("square", [9 + 16, 4, 1]),
        ("joint", [(3 - 4) ** 2, 2**2, 1]),
    ],
)
def test_forms_of_taylor_on_weights(form, expected):
    layer = linear(FIRST)
    layer.weight.grad = torch.tensor(GRADIENT)
    criterion = pk.TaylorWeight(form=form)
    assert scored(criterion, channels_of("a"), {"a": layer}) == pytest.approx(expected)


def test_the_default_form_is_not_zero_before_a_norm():
    """The loss does not change with the scale of a filter in front of a norm in training mode."""
    model = randomise(Residual()).double().train()
    graph = pk.trace(model, image().double())
    model.zero_grad()
    loss_fn(model, batches()[0]).backward()

    def found(form):
        total = Accumulator(graph, pk.TaylorWeight(form=form))
        total.add(model)
        return total.scores().by_group["conv1"]

    assert (found("abs") > 1e-3).all()
    assert (found("joint") < 1e-6 * found("square")).all()


def test_equal_filters_share_what_lamp_gives_the_largest():
    layer = linear([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    assert scored(pk.LAMP(), channels_of("a"), {"a": layer}) == pytest.approx([1 / 9, 1 / 2, 1 / 2])


@pytest.mark.parametrize(("normalize", "divisor"), [("mean", 8 / 3), ("max", 5), ("none", 1)])
@pytest.mark.parametrize("name", ["magnitude", "bn_scale"])
def test_normalisation(name, normalize, divisor):
    modules = {"a": linear(FIRST), "bn": norm([5.0, -1.0, 2.0])}
    group = channels_of("a", "bn", roles=["out", "both"])
    found = scored(criteria.get(name)(normalize=normalize), group, modules)
    assert found == pytest.approx(np.array([5, 1, 2]) / divisor)


def test_several_positions_are_one_filter():
    """Two rows per channel score as the one row that they are together."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    slopes = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    positions = [[0, 3], [1, 4], [2, 5]]
    many, one = linear(rows.tolist()), linear(torch.cat([rows[:3], rows[3:]], 1).tolist())
    many.weight.grad, one.weight.grad = slopes, torch.cat([slopes[:3], slopes[3:]], 1)
    for make in (pk.Magnitude, MagnitudeL1, pk.LAMP, pk.FPGM, pk.TaylorWeight):
        found = scored(make(), channels_of("a", positions=positions), {"a": many})
        assert found == pytest.approx(scored(make(), channels_of("a"), {"a": one}), rel=1e-6)
    modules = {"a": many, "bn": norm([1.0, 2.0, 3.0, 3.0, -4.0, 9.0])}
    group = channels_of("a", "bn", roles=["out", "both"], positions=positions)
    for reduce, expected in (("mean", [2, 3, 6]), ("sum", [4, 6, 12]), ("max", [3, 4, 9])):
        assert scored(pk.BNScale(reduce=reduce), group, modules) == pytest.approx(expected)


def test_distances_in_blocks_are_the_same(monkeypatch):
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    group = channels_of("a", positions=np.arange(40)[:, None])
    whole = scored(pk.FPGM(normalize="none"), group, {"a": linear(rows.tolist())})
    monkeypatch.setattr(fpgm, "BLOCK", 130)
    blocks = scored(pk.FPGM(normalize="none"), group, {"a": linear(rows.tolist())})
    assert blocks == pytest.approx(whole, rel=1e-8)
    expected = (rows[:, None] - rows[None]).double().norm(dim=2).sum(1).numpy()
    assert whole == pytest.approx(expected, rel=1e-6)


# --- the scale of a norm


def test_bn_scale_is_gamma_and_coupled_norms_are_reduced():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    one, two = model.bn.weight.detach().abs().numpy(), model.bn2.weight.detach().abs().numpy()
    expected = {"mean": (one + two) / 2, "sum": one + two, "max": np.maximum(one, two)}
    for reduce, values in expected.items():
        found = pk.score(model, graph, pk.BNScale(reduce=reduce)).by_group
        assert found["stem"] == pytest.approx(values, rel=1e-6)
        assert found["conv1"] == pytest.approx(model.bn1.weight.detach().abs().numpy())


def test_bn_scale_behind_a_depthwise_layer_is_the_last_norms():
    model = randomise(Depthwise())
    graph = pk.trace(model, image())
    for reduce in ("mean", "sum", "max"):
        found = pk.score(model, graph, pk.BNScale(reduce=reduce)).by_group["conv"]
        assert found == pytest.approx(model.bn1.weight.detach().abs().numpy())


def test_norms_in_series_and_side_by_side_count_once_in_a_sum():
    """Two layers and a depthwise one, each with a norm: two of the three are worth counting."""
    names = ["a", "n1", "b", "n2", "depth", "n3"]
    group = channels_of(*names, roles=["out", "both", "out", "both", "both", "both"])
    modules = {"a": linear(FIRST), "b": linear(SECOND), "depth": nn.Conv1d(3, 3, 1, groups=3)}
    modules |= {"n1": norm([1.0, 2, 3]), "n2": norm([4.0, 5, 6]), "n3": norm([-7.0, 8, 9])}
    for reduce, expected in (("sum", [8, 10, 12]), ("mean", [4, 5, 6]), ("max", [7, 8, 9])):
        assert scored(pk.BNScale(reduce=reduce), group, modules) == pytest.approx(expected)
    for name in ("n1", "n2", "n3"):
        for parameter in modules[name].parameters():
            parameter.grad = torch.ones(3)  # the biases are zero
    assert scored(pk.Taylor(), group, modules) == pytest.approx(np.abs([-2, 15, 18]) * 2 / 3)


def test_bn_scale_without_a_norm_is_filter_norms_at_the_gammas_level():
    model = randomise(Depthwise())
    graph = pk.trace(model, image())
    with torch.no_grad():
        model.bn.weight[:4] = 0  # as removed channels are, which are not counted
    gammas = torch.cat([model.bn.weight, model.bn1.weight]).detach().abs()
    found = pk.score(model, graph, pk.BNScale()).by_group["point"]
    length = model.point.weight.detach().flatten(1).norm(dim=1)
    level = gammas[gammas > 0].mean()
    assert found == pytest.approx((length / length.mean() * level).numpy(), rel=1e-6)
    plain = randomise(Plain())
    found = pk.score(plain, pk.trace(plain, image()), pk.BNScale()).by_group
    assert all(values.mean() == pytest.approx(1) for values in found.values())


def test_a_norm_without_a_scale_is_no_scale():
    group = channels_of("a", "bn", roles=["out", "both"])
    modules = {"a": linear(FIRST), "bn": nn.BatchNorm1d(3, affine=False)}
    assert scored(pk.BNScale(), group, modules) == pytest.approx(np.array([5, 1, 2]) * 3 / 8)


# --- what holds for all

NAMES = [
    "bn_scale",
    "fpgm",
    "lamp",
    "magnitude",
    "magnitude_l1",
    "random",
    "taylor",
    "taylor_weight",
]
NO_DATA = [name for name in NAMES if not name.startswith("taylor")]


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


@pytest.mark.parametrize("name", ["bn_scale", "lamp", "magnitude", "magnitude_l1"])
def test_a_larger_filter_ranks_above_a_smaller_one(name):
    sizes = [0.3, 2.0, 0.1, 1.0, 0.7]
    layer = linear([[s, -s, s / 2] for s in sizes])
    group = channels_of("a", positions=np.arange(5)[:, None])
    found = scored(criteria.get(name)(), group, {"a": layer})
    assert list(np.argsort(found)) == list(np.argsort(sizes))


def test_the_filter_in_the_middle_is_the_one_that_others_can_replace():
    layer = linear([[9.0, 1.0], [10.0, 0.0], [8.0, 1.0], [9.0, 9.0]])
    group = channels_of("a", positions=np.arange(4)[:, None])
    found = scored(pk.FPGM(), group, {"a": layer})
    assert found.argmin() == 0  # although its norm is not the smallest
    assert found.argmax() == 3
    twins = linear([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
    assert list(scored(pk.FPGM(), channels_of("a"), {"a": twins})) == pytest.approx(
        [0.75, 0.75, 1.5]
    )


def test_channels_of_half_precision():
    for name in NO_DATA:
        for dtype in (torch.float16, torch.bfloat16):
            found = scored(criteria.get(name)(), channels_of("a"), {"a": linear(FIRST).to(dtype)})
            assert found[0] > 0
            assert np.isfinite(found).all()


def test_weights_that_are_not_numbers_are_refused():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = float("nan")
    for name in ("magnitude", "magnitude_l1", "lamp", "fpgm"):
        with pytest.raises(UsageError, match=f"^{name} scores are not finite; check the loss"):
            pk.score(model, graph, criteria.get(name)())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("random", "taylor")])
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("reduce", "min", "mean, sum or max"), ("normalize", "sum", "mean, max, share or none")],
)
def test_options_that_no_criterion_has_are_refused(name, option, value, allowed):
    text = f"^criterion {name}: `{option}` must be {allowed}, not '{value}'$"
    with pytest.raises(UsageError, match=text):
        criteria.get(name)(**{option: value})


def test_other_options_are_refused_too():
    text = "^criterion taylor_weight: `form` must be abs, square or joint, not 'signed'$"
    with pytest.raises(UsageError, match=text):
        pk.TaylorWeight(form="signed")
    for seed in (-1, 0.5, "a", None):
        text = f"^criterion random: `seed` must be a whole number from 0, not {seed!r}$"
        with pytest.raises(UsageError, match=text):
            pk.Random(seed=seed)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "taylor"])
def test_a_group_that_nothing_writes_is_refused(name):
    group = channels_of("act", "reader", roles=["both", "in"])
    modules = {"act": nn.PReLU(3), "reader": linear(FIRST)}
    with pytest.raises(UsageError, match=r"^no layer with a weight writes .* group 'g', .* again$"):
        criteria.get(name)().channel_scores(group, modules)


def test_taylor_on_weights_needs_gradients():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with pytest.raises(UsageError, match="'taylor_weight' needs data: give `loss_fn`"):
        pk.score(model, graph, pk.TaylorWeight())
    with pytest.raises(UsageError, match=r"no gradient for stem\.weight, .* no backward pass"):
        Accumulator(graph, pk.TaylorWeight()).add(model)


# --- random

DRAW = """
import torch
from torch import nn
import prunekit as pk

def draw(seed):
    torch.manual_seed(seed)  # must not matter
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + i)
    graph = pk.trace(net, torch.zeros(1, 3, 4, 4))
    return pk.score(net, graph, pk.Random()).by_group["0"].tolist()
"""


def test_random_is_the_same_in_every_process():
    other = subprocess.run(
        [sys.executable, "-c", f"{DRAW}\nprint(draw(1))"],
        capture_output=True,
        text=True,
        check=True,
    )
    scope = {}
    exec(DRAW, scope)
    here = scope["draw"](2)
    assert other.stdout.strip() == str(here)
    assert len(set(here)) == 6


def test_random_changes_with_seed_group_and_weights_only():
    model = randomise(Residual())
    graph = pk.trace(model, image())

    def draw(subject=model, seed=0):
        return pk.score(subject, graph, pk.Random(seed)).by_group

    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    torch.rand(3)
    again = draw(copy.deepcopy(model))
    assert all((again[g] == first[g]).all() for g in first)
    assert not (first["stem"] == first["conv1"]).any()
    assert not (draw(seed=1)["conv1"] == first["conv1"]).any()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1
    changed = draw()
    assert not (changed["conv1"] == first["conv1"]).any()
    assert (changed["stem"] == first["stem"]).all()


def test_two_groups_of_one_layer_draw_for_themselves():
    layer = linear(FIRST + SECOND)
    first = channels_of("a")
    second = replace(channels_of("a", positions=[[3], [4], [5]]), id="a#2")
    found = [scored(pk.Random(), group, {"a": layer}) for group in (first, second)]
    assert found[1][1] == 0  # its filter is empty
    assert not (found[0] == found[1]).any()


def test_random_is_uniform():
    group = channels_of("a", positions=np.arange(4000)[:, None])
    layer = nn.Linear(2, 4000)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1, 8001).view(4000, 2))
    found = scored(pk.Random(), group, {"a": layer})
    counts, _ = np.histogram(found, bins=10, range=(0, 1))
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 100  # five standard deviations


# --- a third party's

THIRD_PARTY = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Backwards:
    name: str = "backwards"
    needs_gradients: bool = False

    def channel_scores(self, group, modules):
        return torch.arange(group.size)

    def normalised(self, scores):
        return scores / scores.max()
"""


@pytest.mark.parametrize("way", ["entry point", "register"])
def test_a_third_partys_criterion_works_like_the_others(way, tmp_path, monkeypatch):
    (tmp_path / "others_criteria.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "others_criteria", raising=False)
    entries = []
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    plugins = Registry("criteria")
    if way == "entry point":
        value = "others_criteria:Backwards"
        entries.append(EntryPoint("backwards", value, "prunekit.criteria"))
    else:
        import others_criteria

        plugins.register("backwards", others_criteria.Backwards)
    model = randomise(Residual())
    graph = pk.trace(model, image())
    scores = pk.score(model, graph, plugins.get("backwards")())
    found = pk.allocate(graph, scores, None, pk.Budget.parse("macs=50%"))
    assert scores.criterion == "backwards"
    assert 0 < found.cost <= found.limit
    for group in ("stem", "conv1"):
        width = found.widths[group]
        assert found.plan.keep[group] == tuple(range(8 - width, 8))
    assert not found.plan.is_dense


def test_shares_are_counted_among_what_is_at_least_as_good():
    found = normalise(np.array([4.0, 0.0, 1.0, 3.0, 1.0]), "share")
    assert found == pytest.approx([1.0, 0.0, 1 / 9, 3 / 7, 1 / 9])
    assert normalise(np.zeros(3), "share").tolist() == [0, 0, 0]


def test_a_criterion_is_made_from_text_with_its_options():
    made = criteria.make("magnitude:p=1,normalize=none")
    assert (made.p, made.normalize) == (1, "none")
    assert criteria.make("taylor") == pk.Taylor()
    with pytest.raises(UsageError, match="`normalize` must be mean, max, share or none"):
        criteria.make("taylor:normalize=sum")
    with pytest.raises(UsageError, match=r"criteria name 'taylor': .* unexpected keyword .*beauty"):
        criteria.make("taylor:beauty=1")
    with pytest.raises(UsageError, match="write taylor:option=value"):
        criteria.make("taylor:normalize")


@pytest.mark.parametrize("widths", [(16, 8), (12, 12), (8, 16)])
@pytest.mark.parametrize(
    "criterion",
    [pk.Magnitude(), pk.LAMP(), pk.FPGM(), pk.Taylor(), pk.TaylorWeight(), pk.Random()],
)
def test_a_dead_output_of_a_transposed_convolution_scores_least(widths, criterion):
    into, out = widths
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, into, 3), nn.ReLU(), nn.ConvTranspose2d(into, out, 2, 2), nn.Conv2d(out, 4, 3)
    ).eval()
    with torch.no_grad():
        model[2].weight[:, 3] = 0
        model[2].bias[3] = 0
    images = torch.randn(2, 3, 8, 8)
    graph = pk.trace(model, images)
    found = pk.score(model, graph, criterion, lambda m, b: m(b).square().mean(), [images])
    scores = found.by_group["2"]
    assert len(scores) == out
    assert scores[3] == 0
    assert (np.delete(scores, 3) > 0).all()
