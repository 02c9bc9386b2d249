"""Criteria: Taylor is the derivative it claims to be, and scoring leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_nets import Flatten, Plain, PreActivation, Residual, Tokens, image, randomise
from torch import nn

import prunekit as pk
from prunekit.criteria import Accumulator
from prunekit.errors import UsageError


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
    with pytest.raises(UsageError, match=r"no gradient for bn\.weight; .* need a backward pass"):
        Accumulator(graph, pk.Taylor()).add(model)
    with pytest.raises(UsageError, match="no batch was scored"):
        pk.score(model, graph, pk.Taylor(), loss_fn, [])
    with pytest.raises(UsageError, match="`p` must be 1 or 2, not 3"):
        pk.Magnitude(p=3)
    with pytest.raises(UsageError, match="`normalize` must be mean or none, not 'sum'"):
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
