"""Graphs: widths, fingerprints, floors, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit as pk
from prunekit.core.graph import ChannelGroup, LayerShape, fingerprint
from prunekit.core.plan import ChannelPlan
from prunekit.support.errors import UsageError
from support.nets import Residual, image


def group(size, granularity=1, min_width=1, prunable=True):
    return ChannelGroup("g", size, granularity, min_width, prunable, ())


@settings(derandomize=True)
@given(
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 8, 16]),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 40),
)
def test_widths_are_multiples_or_everything(size, granularity, own, least):
    widths = group(size, own, least).widths(granularity)
    assert widths[-1] == size
    assert list(widths) == sorted(set(widths))
    step = np.lcm(granularity, own)
    assert all(w % step == 0 and w >= least for w in widths[:-1])
    assert group(size, own, least, prunable=False).widths(granularity) == (size,)


def test_layer_shapes_read_well():
    assert str(LayerShape("linear")) == "linear"
    shape = LayerShape("conv", (3, 3), (2, 2), (2, 2), 4, (56, 56), (28, 28), ("add", "relu"))
    assert str(shape) == "conv 3x3/2 dilation 2 groups 4 56x56->28x28 +add +relu"


def test_fingerprints_tell_names_shapes_and_order():
    base = [("a", (1, 2)), ("b", (3,))]
    prints = {
        fingerprint(base),
        fingerprint(base[::-1]),
        fingerprint([("a", (2, 1)), ("b", (3,))]),
        fingerprint([("a", (1, 2)), ("c", (3,))]),
    }
    assert len(prints) == 4
    assert fingerprint(base) == fingerprint(iter(base))


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual(), image())


def test_unknown_groups_list_known_ones(graph):
    with pytest.raises(UsageError, match=r"no channel group 'nope' .*groups: stem, conv1, fc"):
        graph.group("nope")
    with pytest.raises(UsageError, match="no channel group"):
        ChannelPlan.from_keep(graph, {"nope": [0]})


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (("stem",), {"conv1"}),
        (("conv2",), {"conv1"}),  # whose outputs are added to the stem's
        (("bn1",), {"stem"}),
        (("conv*",), set()),
        (("fc",), {"stem", "conv1"}),  # the model's output stays in any case
        ((), {"stem", "conv1"}),
    ],
)
def test_what_is_kept_is_not_prunable(graph, keep, left):
    found = graph.constrained(keep)
    assert {g.id for g in found.groups if g.prunable} == left
    for group in found.groups:
        assert group.reason or group.prunable
    if "stem" not in left:
        with pytest.raises(UsageError, match="'stem' cannot be pruned: kept whole, as asked for"):
            ChannelPlan.from_widths(found, {"stem": 4})


def test_a_module_stands_for_its_layers():
    net = nn.Sequential(Residual())
    found = pk.trace(net, image()).constrained(["0"])
    assert not any(group.prunable for group in found.groups)


def test_what_is_kept_has_to_be_there(graph):
    with pytest.raises(UsageError, match=r"'con', which matches no layer; layers: stem, conv1"):
        graph.constrained(["conv1", "con"])


def test_widths_have_a_floor(graph):
    found = graph.constrained(min_width=0.3)
    assert found.group("stem").widths() == (3, 4, 5, 6, 7, 8)
    assert found.smallest_widths(4) == {"stem": 4, "conv1": 4, "fc": 4}
    twice = found.constrained(min_width=0.1)  # what was asked for before stays
    assert twice.smallest_widths(1) == found.smallest_widths(1) == {"stem": 3, "conv1": 3, "fc": 4}
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="`min_width` must be from 0 to below 1"):
            graph.constrained(min_width=share)


def test_macs_count_what_the_layers_do(graph):
    full = 64 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 8 * 4
    assert graph.macs({}) == graph.macs(graph.dense_widths) == full
    assert graph.macs({"stem": 4, "conv1": 2}) == 64 * 9 * (3 * 4 + 4 * 2 + 2 * 4) + 4 * 4
    assert graph.prunable_macs_share() == 1.0
