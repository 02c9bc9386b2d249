"""Tables compared: the layer that changed comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunekit.latency import diff
from support.tables import Other, made, profile


def test_a_table_does_not_differ_from_itself():
    table = made(0, 4)
    found = diff(table, table)
    assert (found.facts, found.only_a, found.only_b) == ((), (), ())
    assert (found.networks, found.ratio) == (4, 1.0)
    assert all(row.ratio == 1 for one in found.shapes for row in one.widths)


def test_the_layer_that_changed_comes_first(small_net, small_graph, device):
    before = profile(small_net, small_graph)
    device(Other, slower=1.5)
    after = profile(small_net, small_graph)
    changed = next(s for s in after.by_shape if "+add +relu" in str(s))
    half = replace(
        after.by_shape[changed],
        samples=tuple(replace(s, us=s.us / 2) for s in after.by_shape[changed].samples),
    )
    entries = tuple(half if e.shape == changed else e for e in after.entries)
    found = diff(before, replace(after, entries=entries[1:]))
    (fact,) = found.facts
    assert (fact.what, fact.a, fact.b) == ("device name", "fake device", "another fake")
    assert found.only_a == (entries[0].shape,)
    assert found.networks == 0  # without that layer they are other networks
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    assert found.shapes[0].shape == changed
    assert found.shapes[0].apart == pytest.approx(2, rel=0.05)
    assert max(one.apart for one in found.shapes[1:]) < 1.1
    assert [row.at for row in found.shapes[0].widths] == ["dense", "half", "narrow"]
    assert [row.cout for row in found.shapes[0].widths] == [64, 32, 8]
    assert diff(before, after).ratio == pytest.approx(1.5, rel=1e-3)
    assert diff(before, after).networks == len(before.networks)


def test_tables_with_nothing_in_common():
    odd = replace(made(1, 4), entries=made(0, 4).entries[:1])
    found = diff(replace(made(1, 4), entries=made(1, 4).entries), odd)
    assert (found.ratio, found.shapes, found.networks) == (None, (), 0)
