"""Repair: exact where it says so, never farther from the dense network on what it has not met."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import zoo
from prunekit.support.errors import DataError, UsageError
from support.nets import randomise
from support.random_nets import build, example, random_recipe


@torch.no_grad()
def apart(one: nn.Module, other: nn.Module, inputs: torch.Tensor) -> float:
    return float((one(inputs) - other(inputs)).norm() / other(inputs).norm())


def pruned(net: nn.Module, shape: tuple[int, ...], keep: float = 0.6, seed: int = 0):
    graph = pk.trace(net.eval(), torch.zeros(1, *shape))
    plan = pk.ChannelPlan.random(graph, keep, seed)
    return pk.slim(net, plan), plan


@torch.no_grad()
def combined(layer: nn.Module, rest: int) -> None:
    """All outputs of ``layer`` but the first ``rest`` become linear combinations of those."""
    mixing = torch.randn(len(layer.weight) - rest, rest) / rest**0.5
    layer.weight[rest:] = torch.einsum("ij,j...->i...", mixing, layer.weight[:rest])
    layer.bias[rest:] = mixing @ layer.bias[:rest]


@pytest.mark.parametrize(
    ("middle", "reader"),
    [
        (nn.Identity(), nn.Conv2d(12, 5, 3)),
        (nn.Identity(), nn.Conv2d(12, 5, 3, padding=1, stride=2)),
        (nn.Identity(), nn.Conv2d(12, 5, (3, 2), padding="same", dilation=2)),
        (nn.Identity(), nn.Conv2d(12, 5, 3, padding=1, padding_mode="reflect")),
        (nn.AvgPool2d(2), nn.Conv2d(12, 5, 1)),
        (nn.Flatten(2), nn.Conv1d(12, 5, 3, padding=1)),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(12, 5)),
        (nn.Flatten(), nn.Linear(12 * 64, 5)),
    ],
)
def test_least_squares_restores_linear_combinations(middle: nn.Module, reader: nn.Module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), middle, reader).eval()
    combined(net[0], 7)
    graph = pk.trace(net, torch.zeros(1, 3, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {"0": 7})
    small, images = pk.slim(net, plan), torch.randn(600, 3, 8, 8)
    fixed = pk.repair(net, small, plan, [images], method="least-squares")
    fresh = torch.randn(20, 3, 8, 8)
    assert apart(small, net, fresh) > 0.1
    assert apart(fixed.network, net, fresh) < 1e-4
    assert list(fixed.layers) == ["2"]


@pytest.mark.parametrize(
    "activation",
    [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU, nn.Sigmoid],
)
def test_the_bias_is_exact_for_constant_channels_without_data(activation: type[nn.Module]):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    net = randomise(net).eval()
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight[5:] = 0  # these give what their shift is, whatever they read
            norm.bias[5:] = torch.tensor([7.0, 0.5, 2.0])
    graph = pk.trace(net, torch.zeros(1, 3, 9, 9))
    plan = pk.ChannelPlan.from_widths(graph, {"0": 5, "3": 5})
    small, images = pk.slim(net, plan), torch.randn(16, 3, 9, 9)
    fixed = pk.repair(net, small, plan, method="bias", example=torch.zeros(1, 3, 9, 9))
    assert apart(small, net, images) > 1e-3
    assert apart(fixed.network, net, images) < 1e-5
    assert set(fixed.layers) == {"3", "8"}
    assert fixed.left == {}
    measured = pk.repair(net, small, plan, [torch.randn(50, 3, 9, 9)], method="bias")
    assert apart(measured.network, net, images) < 1e-5


def test_the_mean_of_a_gaussian_beside_measured_ones():
    """A residual sum is followed too: what is removed there is known, though not exactly."""
    net = randomise(zoo.build("resnet8", num_classes=4, in_channels=3)).eval()
    small, plan = pruned(net, (3, 16, 16), 0.7)
    fixed = pk.repair(net, small, plan, method="bias", example=torch.zeros(1, 3, 16, 16))
    assert fixed.left == {}
    assert fixed.before is None
    assert len(fixed.layers) > 5


@pytest.mark.parametrize("method", ["norms", "bias", "least-squares", "auto"])
def test_state_and_originals_stay(method: str):
    net = randomise(zoo.build("mobilenet_v1", num_classes=4, in_channels=3)).eval()
    small, plan = pruned(net, (3, 16, 16), 0.7)
    before = {name: t.clone() for name, t in {**net.state_dict(), **small.state_dict()}.items()}
    fixed = pk.repair(net, small, plan, [torch.randn(8, 3, 16, 16)] * 3, method=method)
    for name, tensor in {**net.state_dict(), **small.state_dict()}.items():
        assert torch.equal(tensor, before[name]), name
    shapes = {name: t.shape for name, t in small.state_dict().items()}
    assert {name: t.shape for name, t in fixed.network.state_dict().items()} == shapes
    assert pk.slim(net, plan)(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def _images(value, count: int):
    if isinstance(value, dict):
        return {name: _images(part, count) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_images(part, count) for part in value)
    return torch.randn(count, *value.shape[1:])


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_come_nearer_and_stay_finite(seed: int):
    recipe = random_recipe(20_000 + seed)
    net, given = build(recipe).eval(), example(recipe)
    graph = pk.trace(net, given)
    plan = pk.ChannelPlan.random(graph, 0.6, seed)
    small = pk.slim(net, plan)
    torch.manual_seed(seed)
    images = _images(given, 60)
    fixed = pk.repair(net, small, plan, [images])
    assert np.isfinite(fixed.after)
    assert fixed.after <= fixed.before
    assert fixed.after <= fixed.tried["none"]
    solved = pk.repair(net, small, plan, [images], method="least-squares")
    for name, layer in solved.layers.items():
        assert layer.after <= layer.before + 1e-9, name
    assert {n: t.shape for n, t in fixed.network.state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }
    free = pk.repair(net, small, plan, example=given)
    assert all(torch.isfinite(t).all() for t in free.network.parameters())


def test_a_masked_network_is_repaired_as_the_slim_one_is():
    """What is changed are kept channels: zeros in the dense form stay what the plan removes."""
    net = randomise(zoo.build("resnet8", num_classes=4, in_channels=3)).eval()
    small, plan = pruned(net, (3, 16, 16), 0.6)
    images = torch.randn(40, 3, 16, 16)
    fixed = pk.repair(net, small, plan, [images], method="least-squares").network
    from prunekit.networks.slimming import kept, named_tensors

    parts, wide = kept(net, plan), pk.mask_(net, plan)
    state = dict(named_tensors(wide))
    for name, tensor in named_tensors(fixed):
        if name in parts:
            parts[name].put_(state[name].data, tensor.data)
        else:
            state[name].data.copy_(tensor.data)
    assert apart(fixed, wide, images) < 1e-5


def test_singular_inputs_change_nothing_that_they_say_nothing_of():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[2] = net[0].weight[1]  # two that are the same
        net[0].bias[2] = net[0].bias[1]
        net[0].weight[3], net[0].bias[3] = 0, -1  # one that is always zero
    graph = pk.trace(net, torch.zeros(1, 3, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {"0": 6})
    small, images = pk.slim(net, plan), torch.randn(100, 3, 8, 8)
    fixed = pk.repair(net, small, plan, [images], method="least-squares")
    assert fixed.after < fixed.before
    assert torch.equal(fixed.network[2].weight[:, 3], small[2].weight[:, 3])


@pytest.mark.parametrize("method", ["norms", "bias", "least-squares", "auto"])
def test_black_images_leave_a_network_that_works(method: str):
    net = randomise(zoo.build("resnet8", num_classes=4, in_channels=3)).eval()
    small, plan = pruned(net, (3, 16, 16), 0.7)
    fixed = pk.repair(net, small, plan, [torch.zeros(20, 3, 16, 16)], method=method)
    assert torch.isfinite(fixed.network(torch.randn(4, 3, 16, 16))).all()


def test_too_few_positions_are_told_with_how_many_images_it_needs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 4)).eval()
    graph = pk.trace(net, torch.zeros(1, 3, 4, 4))
    plan = pk.ChannelPlan.from_widths(graph, {"1": 100})
    small = pk.slim(net, plan)
    fixed = pk.repair(net, small, plan, [torch.randn(40, 3, 4, 4)], method="least-squares")
    assert fixed.layers["3"].rows == 32
    assert fixed.short_of_images == ("3", 125)
    assert fixed.after <= fixed.before
    enough = pk.repair(net, small, plan, [torch.randn(125, 3, 4, 4)], method="least-squares")
    assert enough.short_of_images is None


def test_fewer_images_are_used_where_activations_are_large():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small, plan = pruned(net, (3, 32, 32))
    fixed = pk.repair(net, small, plan, [torch.randn(64, 3, 32, 32)], memory=1 << 20)
    assert 10 <= fixed.images < 64


def test_grouped_and_depthwise_layers_are_solved_group_by_group():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU()),
        *(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1)),
    ).eval()
    small, plan = pruned(net, (3, 12, 12), 0.6, seed=3)
    fixed = pk.repair(net, small, plan, [torch.randn(64, 3, 12, 12)], method="least-squares")
    assert fixed.left == {}
    assert fixed.after < 0.8 * fixed.before


def test_an_attentions_projection_is_solved():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, -1, 4).permute(2, 0, 3, 1, 4)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.head(x + self.proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))).mean(1)

    torch.manual_seed(0)
    net = Net().eval()
    graph = pk.trace(net, torch.zeros(1, 6, 16))
    plan = pk.ChannelPlan.random(graph, 0.5, 1)
    assert not plan.is_dense
    small = pk.slim(net, plan)
    fixed = pk.repair(net, small, plan, [torch.randn(200, 6, 16)], method="least-squares")
    assert "proj" in fixed.layers
    assert fixed.after < fixed.before


# --- refused --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_case():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small, plan = pruned(net, (3, 8, 8))
    return net, small, plan


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"method": "magic"}, UsageError, "`method` must be one of none, norms, bias,"),
        ({"method": "norms"}, UsageError, "repair by norms needs images; give `batches`, or use"),
        ({"method": "bias"}, UsageError, "repair without `batches` needs `example`"),
        ({"batches": []}, DataError, "repair has 0 images and needs at least 10; give more"),
        (
            {"batches": [torch.zeros(9, 3, 8, 8)]},
            DataError,
            "repair has 9 images and needs at least 10; give more",
        ),
        (
            {"batches": [torch.zeros(8, 3, 8, 8), torch.zeros(8, 3, 9, 9)]},
            DataError,
            "images of 3x9x9 after images of 3x8x8; repair needs all of one size: resize them",
        ),
        ({"batches": [["a.png"]]}, UsageError, "`batches` gives list; inputs are needed: a tensor"),
        (
            {"batches": [torch.zeros(16, 1, 8, 8)]},
            pk.PrunekitError,
            "Sequential refuses input 1x1x8x8: RuntimeError",
        ),
    ],
)
def test_bad_input_is_one_line(small_case, changes, error, text: str):
    with pytest.raises(error) as refusal:
        pk.repair(*small_case, **changes)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_plan_of_another_network_is_refused(small_case):
    _, small, plan = small_case
    with pytest.raises(UsageError, match="the plan is for another model"):
        pk.repair(nn.Sequential(nn.Conv2d(3, 9, 3)), small, plan, [torch.zeros(16, 3, 8, 8)])
