"""What a plan does to every group, in numbers, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import prunekit as pk
from prunekit.allocation.costs import MacsCost
from prunekit.core.scores import Scores
from prunekit.report import to_html, to_markdown
from prunekit.report.schema import GroupPart
from support.commands import ON_FAKE, Says
from support.nets import Residual, image
from support.reports import SMALL, make_report


@pytest.fixture(scope="module")
def graph():
    return pk.trace(Residual().eval(), image())


def test_what_a_group_saves_is_what_putting_it_back_would_cost(graph):
    plan = pk.ChannelPlan.from_widths(graph, {"stem": 4, "conv1": 2})
    found = pk.explain(graph, plan, MacsCost())
    now = graph.macs({"stem": 4, "conv1": 2})
    assert found["stem"].saved == graph.macs({"stem": 8, "conv1": 2}) - now
    assert found["conv1"].saved == graph.macs({"stem": 4, "conv1": 8}) - now
    assert list(found) == [g.id for g in graph.groups if g.prunable]


def test_what_is_kept_of_the_scores_and_what_can_go_no_further(graph):
    scores = Scores({"stem": np.array([5.0, 1, 1, 1, 1, 1, 0, 0]), "conv1": np.zeros(8)}, "by hand")
    plan = pk.ChannelPlan.from_widths(graph, {"stem": 4, "conv1": 8}, scores)
    found = pk.explain(graph, plan, MacsCost(), scores, granularity=4)
    assert found["stem"].saliency == pytest.approx(0.8)
    assert found["conv1"].saliency is None  # nothing to keep a share of
    assert (found["stem"].before, found["stem"].after, found["stem"].at_minimum) == (8, 4, True)
    assert (found["conv1"].saved, found["conv1"].at_minimum) == (0.0, False)
    assert pk.explain(graph, plan, MacsCost())["stem"].saliency is None
    assert not pk.explain(graph, plan, MacsCost())["stem"].at_minimum  # of one channel


def test_a_run_tells_it_in_the_terminal_in_json_and_on_the_page(prunekit: Says, home: Path):
    flags = ("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--target-latency", "60%")
    status, out, _ = prunekit(*flags, "--epochs", 0, "-o", "told")
    assert status == 0
    report = json.loads((home / "told" / "report.json").read_text())
    groups = report["groups"]
    assert {g: [p["before"], p["after"]] for g, p in groups.items()} == report["widths"]
    cut = {name: part for name, part in groups.items() if part["after"] < part["before"]}
    assert cut
    for name, part in cut.items():
        assert part["saved_ms"] > 0
        assert 0 < part["saliency"] < 1
        assert name in out
        assert f"{part['before']} -> {part['after']}" in out
        assert f"{part['saved_ms']:.4f}" in out
    assert report["latency"]["dense_ms"] > max(part["saved_ms"] for part in cut.values())


def test_pages_with_and_without(graph):
    groups = {
        name: GroupPart(before=a, after=b, saliency=0.25, saved_ms=1.5, at_minimum=b == 8)
        for name, (a, b) in SMALL.items()
    }
    told = make_report(widths=SMALL, groups=groups)
    text = to_markdown(told)
    assert "| layer3.1.conv1 | 256 -> 8 | 25.0% | 1.5000 | least |" in text
    assert "| layer2.1.conv1 | 128 -> 128 | 25.0% |  |  |" in text
    page = to_html(told)
    assert "1 at the least width there is" in page
    assert page.count('<td class="number">1.500</td>') == len(SMALL) - 1
    bare = make_report(widths=SMALL)
    assert "ms saved" not in to_html(bare)
    assert "| layer3.1.conv1 | 256 | 8 |" in to_markdown(bare)
