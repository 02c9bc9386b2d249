"""Taylor: the derivative with respect to a channel's gate, and its forms on weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.criteria import Accumulator
from prunekit.support.errors import UsageError
from support.nets import (
    Flatten,
    PreActivation,
    Residual,
    Tokens,
    image,
    randomise,
)
from support.scoring import FIRST, GRADIENT, batches, channels_of, linear, loss_fn, scored


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


def test_taylor_on_weights_needs_gradients():
    model = randomise(Residual())
    graph = pk.trace(model, image())
    with pytest.raises(UsageError, match="'taylor_weight' needs data: give `loss_fn`"):
        pk.score(model, graph, pk.TaylorWeight())
    with pytest.raises(UsageError, match=r"no gradient for stem\.weight, .* no backward pass"):
        Accumulator(graph, pk.TaylorWeight()).add(model)


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
