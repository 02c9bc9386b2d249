"""Statistics of norms taken anew."""

import pytest
import torch
from torch import nn

from prunekit.train.norms import renew_norms


def test_statistics_are_those_of_all_batches_and_nothing_else_changes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    net[1].momentum = 0.3
    weights = {name: tensor.clone() for name, tensor in net.named_parameters()}
    batches = [torch.randn(16, 3, 5, 5) + 2 for _ in range(3)]
    assert renew_norms(net, batches) == 1
    seen = torch.cat([net[0](batch) for batch in batches])
    mean = seen.mean((0, 2, 3))
    torch.testing.assert_close(net[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, seen.var((0, 2, 3)), rtol=0.02, atol=1e-3)
    assert net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.named_parameters())


def test_networks_without_running_statistics_are_not_run():
    def batches():
        raise AssertionError
        yield

    for layer in (nn.GroupNorm(1, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()):
        assert renew_norms(nn.Sequential(layer), batches()) == 0


def test_an_interrupted_renewal_leaves_the_settings():
    norm = nn.BatchNorm1d(2)

    def batches():
        yield torch.randn(4, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        renew_norms(nn.Sequential(norm), batches())
    assert norm.momentum == 0.1
    assert norm.training
