"""A trained network that misses is cut further, trained for a while, and measured again."""

from dataclasses import replace

import pytest

import prunekit as pk
from prunekit.core.run_folder import MENDING
from prunekit.pipeline import mending
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.job import set_up
from prunekit.pipeline.prune import prune
from prunekit.pipeline.recipes.prune import make_recipe

SETTINGS = {
    "model": "net.py:tiny",
    "input": "1x1x8x8",
    "data": "digits",
    "epochs": 2,
    "target": "fake",
    "table": "table.json",
    "granularity": 1,
    "target_latency": "65%",
}


def run(home, output="mended", resume=False, **settings):
    job = set_up(make_recipe({**SETTINGS, **settings}))
    return prune(job, home / output, resume=resume)


@pytest.fixture
def slow_files(monkeypatch):
    """Exported files measure 5 % over the limit, for so many times; gives the sizes timed."""
    sizes, real = [], DenseComparison.final_time
    times = {"left": 1}

    def final_time(self, small, onnx, target):
        timed = real(self, small, onnx, target)
        sizes.append(sum(p.numel() for p in small.parameters()))
        if times["left"] <= 0:
            return timed
        times["left"] -= 1
        (ratio,) = timed.ratios
        return replace(timed, ratios=(ratio.scaled(1.05 * target / ratio.ratio),))

    monkeypatch.setattr(DenseComparison, "final_time", final_time)
    return sizes, times


@pytest.mark.parametrize("method", ["oneshot", "halp", "iee"])
def test_a_miss_after_training_is_mended(home, slow_files, method):
    sizes, _ = slow_files
    report = run(home, method=method)
    assert report.latency.met
    assert report.latency.outcome == "met"
    assert report.latency.mended == 1
    assert sizes[1] < sizes[0]
    assert report.params.pruned == sizes[1]
    assert sum(attempt.chosen for attempt in report.landing) == 1
    assert any(epoch.stage.startswith("mending") for epoch in report.epochs)
    assert report.seconds["mending"] > 0
    small = pk.load(home / "mended", SETTINGS["model"])
    assert sum(p.numel() for p in small.parameters()) == sizes[1]
    assert report.accuracy.pruned is not None


def test_three_cuts_are_the_most(home, slow_files):
    sizes, times = slow_files
    times["left"] = 10
    report = run(home)
    assert report.latency.outcome == "missed"
    assert report.latency.mended == mending.MOST == 3
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4


def test_a_machine_that_is_too_noisy_is_no_reason_to_cut(home, monkeypatch):
    real = DenseComparison.final_time

    def noisy(self, small, onnx, target):
        timed = real(self, small, onnx, target)
        (ratio,) = timed.ratios
        known = replace(ratio.estimate, floor=0.2)
        return replace(timed, ratios=(replace(ratio, known=known),), lost=0.5)

    monkeypatch.setattr(DenseComparison, "final_time", noisy)
    report = run(home)
    assert report.latency.outcome == "open"
    assert report.latency.mended == 0
    assert not report.latency.met
    assert 0.05 < report.latency.probability < 0.95


def test_an_interrupted_mending_goes_on(home, slow_files, monkeypatch):
    sizes, _ = slow_files
    real = mending.renew_norms
    with monkeypatch.context() as patch:
        patch.setattr(mending, "renew_norms", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(home)
    assert (home / "mended" / MENDING.format(1)).is_file()
    assert mending.renew_norms is real
    report = run(home, resume=True)
    assert report.latency.mended == 1
    assert report.latency.met
    assert len(sizes) == 2  # what missed is not measured again


def test_what_cannot_be_cut_further_is_a_miss(home, slow_files, capsys):
    _, times = slow_files
    times["left"] = 10
    report = run(home, min_width="60%", target_latency="85%")
    assert report.latency.outcome == "missed"
    assert "it cannot be cut further" in capsys.readouterr().err
