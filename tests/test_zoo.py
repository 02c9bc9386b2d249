"""The zoo: sizes, gradients, structure, initialisation."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from prunekit import zoo
from prunekit.support.errors import ModelError

# At one class fewer than usual, so that a class count that is ignored shows.
MILLIONS = {
    "mobilenet_v1": (3.2, 0.1),
    "resnet20": (0.27, 0.01),
    "resnet20_w32": (1.08, 0.02),
    "resnet56": (0.855, 0.01),
    "resnet8": (0.078, 0.001),
    "vgg11_bn": (9.23, 0.05),
    "wrn22_2": (1.08, 0.02),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Tensors this small gain nothing from threads, which wait for each other on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 13, 19)])
def test_every_net_takes_every_small_image(name: str, shape: tuple[int, int, int]) -> None:
    model = zoo.build(name, 9, shape[0])
    out = model(torch.zeros(2, *shape))
    assert out.shape == (2, 9)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_sizes_and_gradients(name: str) -> None:
    model = zoo.ZOO[name]()
    millions, tolerance = MILLIONS[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=tolerance
    )
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_layer_is_called_once_and_never_in_place(name: str) -> None:
    # A ReLU used twice, or in place, hides from a tracer where a channel group ends.
    model = zoo.build(name)
    calls = {module: 0 for module in model.modules() if not list(module.children())}
    for module in calls:
        assert not getattr(module, "inplace", False)
        module.register_forward_hook(
            lambda m, *_: calls.update({m: calls[m] + 1})  # type: ignore[func-returns-value]
        )
    model(torch.zeros(2, 3, 8, 8))
    assert set(calls.values()) == {1}


def test_residual_stages_begin_with_a_projection() -> None:
    model = zoo.resnet20()
    kernels = [
        (m.in_channels, m.out_channels, m.stride)
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert kernels == [(16, 32, (2, 2)), (32, 64, (2, 2))]


def test_initialisation_follows_the_generator() -> None:
    torch.manual_seed(3)
    first = zoo.resnet20().state_dict()
    torch.manual_seed(3)
    again = zoo.resnet20().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="unknown zoo model 'resnet21'; known: mobilenet_v1, resn"):
        zoo.build("resnet21")
