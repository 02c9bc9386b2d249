"""What is recorded of a pruning, and the work it was."""

from __future__ import annotations

import json
import math

import pytest

from prunekit.pruning.history import overlap
from prunekit.support.registry import criteria
from support.iee_loop import Loop
from support.nets import (
    Residual,
)


def test_work_is_what_the_networks_in_use_multiply():
    loop, macs, dense = Loop(reactivate=0.5), 0, 0
    table = {layer.name: layer for layer in loop.graph.layers}
    assert set(table) == {"stem", "conv1", "conv2", "fc"}
    while loop.done < 30:
        network = loop.iee.model
        for name, layer in table.items():
            weights = {
                "small": getattr(network, name).weight,
                "dense": getattr(loop.model, name).weight,
            }
            area = math.prod(layer.shape.out_hw) if layer.shape.out_hw else 1
            macs += weights["small"].numel() * area
            dense += weights["dense"].numel() * area
        loop.step()
        assert loop.iee.work == pytest.approx(30 * macs / dense * loop.done / 30 / 1)


def test_the_log_tells_what_the_structures_were():
    criterion = criteria.get("random")()
    loop = Loop(lambda: Residual(16), criterion=criterion, omega=0.6, decay="constant")
    begin, grown, ever, rows, cycle = loop.iee.plan, None, {}, [], 0
    while loop.iee.stage != "final":
        stage, plan = loop.iee.stage, loop.iee.plan
        loop.step()
        if stage == "estimate" != loop.iee.stage:
            begin = plan
        if stage == "explore" != loop.iee.stage:
            now = loop.iee.plan
            (row,) = loop.iee.rows()
            rows.append(row)
            pairs = [(g, c) for g in now.keep for c in now.keep[g]]
            before = [(g, c) for g in begin.keep for c in begin.keep[g]]
            assert row["iou"] == len({*pairs} & {*before}) / len({*pairs} | {*before})
            assert row["iou"] == overlap(begin, now) == overlap(now, begin)
            active = {(g, c) for g in plan.keep for c in plan.keep[g]}
            if grown:
                assert row["survival"] == len(grown & active) / len(grown)
            else:
                assert row["survival"] is None
            grown = {*pairs} - active
            ever |= dict.fromkeys(grown)
            assert row["grown"] == len(grown)
            assert loop.iee.survival() == len(ever.keys() & {*pairs}) / len(ever)
            assert row["widths"] == {g: len(now.keep[g]) for g in ("stem", "conv1")}
            assert row["predicted_ratio"] == pytest.approx(loop.cost(now.widths) / loop.cost({}))
            assert (row["stage"], row["step"], row["cycle"]) == ("update", loop.done, cycle)
            assert row["relative_flops"] == loop.iee.work / 30
            assert row["omega"] == loop.iee.schedule.omega_at(cycle)
            cycle += 1
    assert rows == loop.iee.history
    assert loop.iee.rows() == []
    assert any(0 < row["iou"] < 1 for row in rows)
    assert any(0 < (row["survival"] or 0) < 1 for row in rows)
    assert json.loads(json.dumps(rows)) == rows
