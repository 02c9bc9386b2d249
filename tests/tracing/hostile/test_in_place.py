"""Values that are written in place."""

from __future__ import annotations

import pytest
from torch import nn

import prunekit as pk
from support.hostile import CONSTANT, IMAGE, WRITTEN, check, net, same, steps
from support.nets import image

IN_PLACE = {
    "relu_": net(steps("x = s.p(x).relu_()"), "a b p", p=same),
    "add": net(steps("x += s.p(x)"), "a b", p=same),
    "a slice is zeroed": net(steps("x[:, :4] = 0"), "b", "zeroing"),
    "a channel is scaled": net(steps("x[:, 3] *= 2"), "b", "by number"),
    "a channel is copied": net(steps("x[:, 3] = x[:, 2]"), "b", "by number"),
    "some values are set": net(steps("x[x > 1] = 0.5"), "a b"),
    "rows are set": net(steps("x[0] = x[1]"), "b", WRITTEN),
    "out": net(steps("x = torch.add(x, s.p(x), out=torch.empty_like(x))"), "a b", p=same),
    "out that is empty": net(
        steps("x = torch.add(x, s.p(x), out=torch.empty(0))"), "b", CONSTANT, p=same
    ),
    "out that is a view": net(
        steps(
            "y = x.new_zeros(x.shape[0], x.shape[1] + 2, 8, 8)",
            "torch.mul(x, 2, out=y[:, : x.shape[1]])",
            "x = y[:, : x.shape[1]]",
        ),
        "b",
        CONSTANT,
    ),
    "copied": net(steps("y = torch.empty_like(x)", "y.copy_(s.p(x))", "x = y"), "a b", p=same),
    "copied into new": net(steps("y = x.new_empty(x.shape)", "y.copy_(x)", "x = y"), "a b"),
    "copied after a view": net(
        steps("y = x.new_empty(x.shape)", "v = y.view(y.shape)", "y.copy_(x)", "x = v"),
        "b",
        "the slim network fails",
    ),
    "copied through a view": net(
        steps("y = x.new_empty(x.shape)", "v = y.view(y.shape)", "v.copy_(x)", "x = y"),
        "b",
        WRITTEN,
    ),
    "a slice's view before it is written": net(
        steps("y = x.new_empty(x.shape)", "v = y[:, :4]", "y.copy_(x)", "x = v"),
        "b",
        wide=4,
    ),
    "written through a view": net(steps("v = x.view(x.shape[0], -1)", "v += 1"), "a b"),
    "filled slice by slice": net(
        steps(
            "y = torch.zeros(x.shape[0], 16, 8, 8)",
            "y[:, :8] = s.p(x)",
            "y[:, 8:] = s.q(x)",
            "x = y",
        ),
        "a b",
        {"p": WRITTEN, "q": WRITTEN},
        wide=16,
        p=same,
        q=same,
    ),
    "added slice by slice": net(
        steps(
            "y = x.new_zeros(x.shape[0], 16, 8, 8)",
            "y[:, :8].add_(s.p(x))",
            "y[:, 8:].add_(s.q(x))",
            "x = y",
        ),
        "a b",
        {"p": CONSTANT, "q": CONSTANT},
        wide=16,
        p=same,
        q=same,
    ),
    "filled sample by sample": net(
        steps("y = x.new_zeros(x.shape)", "for i in range(len(x)): y[i] = s.p(x[i:i+1])[0]", "x=y"),
        "b",
        {"p": WRITTEN},
        others=[image(3)],
        p=same,
    ),
    "modified after use": net(steps("y = s.p(x)", "x.mul_(2)", "x = x + y"), "a b", p=same),
    "zeroed after use": net(
        steps("y = s.p(x.view(x.shape))", "x.view(x.shape).zero_()", "x = x + y"), "a b", p=same
    ),
    "saved, then in place": net(
        steps("y = s.p(x)", "x = y + F.relu(y, inplace=True)"), "a b p", p=same
    ),
    "data replaced": net(steps("y = s.p(x)", "x.data = y"), "b", "the slim network fails", p=same),
    "set_": net(steps("x.set_(s.p(x))"), "b", "aten.set_ in the model", p=same),
    "resize_": net(steps("y = torch.empty(0)", "y.resize_(x.shape)", "y.copy_(x)", "x = y"), "a b"),
    "transpose_": net(steps("x.transpose_(2, 3)"), "a b"),
    "index_fill_": net(steps("x.index_fill_(1, torch.tensor([1, 2]), 0.0)"), "b", "index_fill_"),
    "scatter_": net(
        steps(
            "y = torch.arange(8).flip(0).view(1, 8, 1, 1)",
            "x = x.scatter_(1, y.expand_as(x), x.clone())",
        ),
        "b",
        "picks positions of it (scatter_)",
    ),
    "squeeze": net(
        steps("x = s.p(F.adaptive_avg_pool2d(x, 1).squeeze())[:, :, None, None]"),
        "a b p",
        others=[image(3)],
        p=lambda: nn.Linear(8, 8),
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_written_in_place(name):
    check(IN_PLACE[name])


def test_where_one_channel_is_not_enough_two_are_kept():
    groups = pk.trace(IN_PLACE["squeeze"].make(), IMAGE).by_id
    assert {name: group.min_width for name, group in groups.items()} == {
        "a": 2,
        "b": 1,
        "fc": 1,
        "p": 1,
    }
