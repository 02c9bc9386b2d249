"""The pipeline's answers to measurements that turn out otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

import prunekit as pk
from prunekit.exporting import onnx as exporting
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.job import set_up
from prunekit.pipeline.prune import prune
from prunekit.pipeline.recipes.prune import make_recipe
from prunekit.support.files import sha256_file
from prunekit.zoo import _ResNet

pytestmark = pytest.mark.usefixtures("device")  # without noise
SETTINGS = {
    "model": f"{__file__}:resnet8_w32",
    "input": "1x3x16x16",
    "target": "fake",
    "epochs": 0,
    "profile_nets": 4,
}


def resnet8_w32():
    """ResNet-20's widths and a third of its blocks."""
    return _ResNet(1, 32, num_classes=10, in_channels=3)


def run(tmp_path, output="run", **settings):
    job = set_up(make_recipe({**SETTINGS, **settings}))
    return prune(job, tmp_path / output)


def test_a_network_is_exported_once(tmp_path, monkeypatch):
    """For the profile, the landing and the report: the dense one, and the slim one."""
    written, write = [], exporting._write

    def counted(model, *rest, **settings):
        written.append(sum(p.numel() for p in model.parameters()))
        write(model, *rest, **settings)

    monkeypatch.setattr(exporting, "_write", counted)
    report = run(tmp_path, target_latency="60%")
    assert written == [report.params.dense, report.params.pruned]


def test_a_final_miss_without_training_lands_again(tmp_path, monkeypatch):
    """The exported network measures 6 % over the limit at first: the next plan is smaller."""
    finals = []
    real = DenseComparison.final_time

    def first_too_slow(self, small, onnx, target):
        found = real(self, small, onnx, target)
        if not finals:
            ratio = 1.06 * target
            found = replace(
                found, ratios=(replace(found.ratios[0], ratio=ratio, high=ratio, known=None),)
            )
        finals.append(sum(p.numel() for p in small.parameters()))
        return found

    monkeypatch.setattr(DenseComparison, "final_time", first_too_slow)
    report = run(tmp_path)
    assert report.latency.met
    assert report.latency.ratio <= 0.5
    assert 2 <= len(finals) <= 3
    assert finals[1] < finals[0]
    assert report.params.pruned in finals[1:]
    assert sum(attempt.chosen for attempt in report.landing) == 1


def test_layers_that_are_kept_and_a_floor_of_widths(tmp_path):
    kept = {"blocks.1.conv1", "blocks.1.conv2"}  # what is in block 1 and what it adds to

    def shares(report):
        return {name: after / before for name, (before, after) in report.widths.items()}

    free = shares(run(tmp_path, "free", target_latency="60%"))
    assert min(free.values()) < 0.5
    assert any(free[name] < 1 for name in kept)
    report = run(tmp_path, target_latency="70%", keep=("blocks.1",), min_width="50%")
    assert report.latency.met
    assert not kept & shares(report).keys()
    assert 0.5 <= min(shares(report).values()) < 1
    assert {report.frozen[name] for name in kept} == {"kept whole, as asked for"}


@pytest.fixture
def slow_at_first(monkeypatch):
    """Plans measure 9 % too slow until a network was exported; gives the parameters timed then."""
    sizes, landing, final = [], DenseComparison.landing_ratio, DenseComparison.final_time

    def landing_ratio(self, plan, target):
        found, off = landing(self, plan, target), 1.0 if sizes else 1.09
        return found.scaled(off)

    def final_time(self, small, onnx, target):
        sizes.append(sum(p.numel() for p in small.parameters()))
        return final(self, small, onnx, target)

    monkeypatch.setattr(DenseComparison, "landing_ratio", landing_ratio)
    monkeypatch.setattr(DenseComparison, "final_time", final_time)
    return sizes


def test_a_budget_that_is_not_used_up_lands_higher(tmp_path, slow_at_first):
    report = run(tmp_path, target_latency="60%")
    assert len(slow_at_first) == 2
    assert slow_at_first[1] > slow_at_first[0]
    assert report.params.pruned == slow_at_first[1]
    assert report.latency.met
    assert report.latency.ratio > 0.57


def test_a_larger_plan_that_misses_is_not_taken(tmp_path, slow_at_first, monkeypatch):
    final = DenseComparison.final_time

    def second_too_slow(self, small, onnx, target):
        found = final(self, small, onnx, target)
        if len(slow_at_first) == 2:
            found = replace(
                found, ratios=(replace(found.ratios[0], ratio=1.01 * target, known=None),)
            )
        return found

    monkeypatch.setattr(DenseComparison, "final_time", second_too_slow)
    report = run(tmp_path, target_latency="60%")
    assert slow_at_first[1] > slow_at_first[0]
    assert report.params.pruned == slow_at_first[0]
    assert report.latency.met
    assert report.latency.ratio < 0.58
    small = pk.load(tmp_path / "run", SETTINGS["model"])
    assert sum(p.numel() for p in small.parameters()) == slow_at_first[0]
    assert report.digests["onnx"] == sha256_file(tmp_path / "run" / "model.onnx")
    assert sum(attempt.chosen for attempt in report.landing) == 1


@pytest.mark.parametrize("method", ["oneshot", "iee"])
def test_a_landing_is_confirmed_before_training(home, monkeypatch, method):
    """The plan to be trained measures 6 % over the limit for longer: a smaller one is trained."""
    longer, real = [], DenseComparison.confirmed_ratio

    def first_too_slow(self, plan, target):
        found = real(self, plan, target)
        longer.append(plan.widths)
        if len(longer) > 1:
            return found
        return replace(found, ratio=1.06 * target, high=1.07 * target, known=None)

    monkeypatch.setattr(DenseComparison, "confirmed_ratio", first_too_slow)
    settings = {"model": "net.py:tiny", "input": "1x1x8x8", "data": "digits", "epochs": 2}
    chosen = {"method": method, "table": "table.json", "granularity": 1, "profile_nets": 12}
    report = run(home, **settings, **chosen, target_latency="65%", output="confirmed")
    assert len(longer) == 2
    widths = {group: pruned for group, (_, pruned) in report.widths.items()}
    assert widths == {group: longer[1][group] for group in widths}
    assert sum(longer[1].values()) < sum(longer[0].values())
    assert report.latency.met
    assert sum(attempt.chosen for attempt in report.landing) == 1


def test_a_network_that_never_measures_right_is_reported_as_a_miss(tmp_path, monkeypatch):
    real = DenseComparison.final_time

    def too_slow(self, small, onnx, target):
        found = real(self, small, onnx, target)
        return replace(found, ratios=(replace(found.ratios[0], ratio=1.02 * target, known=None),))

    monkeypatch.setattr(DenseComparison, "final_time", too_slow)
    report = run(tmp_path)
    assert not report.latency.met


def test_milliseconds_are_decided_on_milliseconds(tmp_path, monkeypatch):
    """Dense and pruned get 10 % slower together after the limit was set: the ratio is no excuse."""
    real = DenseComparison.time

    def slower(self, *args, **settings):
        found = real(self, *args, **settings)
        later = tuple(
            replace(
                m,
                samples_ms=tuple(1.1 * ms for ms in m.samples_ms),
                session_medians_ms=tuple(1.1 * ms for ms in m.session_medians_ms),
            )
            for m in found.measurements
        )
        return replace(found, measurements=later)

    monkeypatch.setattr(DenseComparison, "time", slower)
    report = run(tmp_path, target_latency="0.5ms")
    assert report.budget.limit_ms == 0.5
    assert report.latency.met
    assert 0.5 * 0.85 < report.latency.pruned_ms <= 0.5
