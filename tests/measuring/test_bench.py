"""Benches and checks: ratios, time limits, noise, verdicts."""

import math

import pytest

from prunekit.core.artifact import Artifact
from prunekit.core.ratio import PairedRatio
from prunekit.measuring import interleaved as racing
from prunekit.measuring.bench import bench, check_ratio, check_regression
from prunekit.measuring.sessions import Sessions
from prunekit.support.errors import RuntimeUnavailableError, UsageError
from prunekit.support.registry import runtimes
from support.machine import Machine, ms
from support.onnx_files import conv_net


@pytest.fixture
def machine(monkeypatch):
    """Make a machine the target `machine`, and its time the time that passes."""

    def make(**facts):
        made = Machine(**facts)
        monkeypatch.setitem(runtimes._loaded, "machine", lambda: made)
        monkeypatch.setattr(racing.time, "perf_counter", lambda: made.now)
        monkeypatch.setattr(racing, "switch_counter", lambda _threads: lambda: 0)
        return made

    return make


def test_bench_finds_the_ratio_and_keeps_samples(machine):
    made = machine(seed=1)
    result = bench([ms(5), ms(2.5), ms(6)], "machine")
    assert [ratio.ratio for ratio in result.ratios] == pytest.approx([0.5, 1.2], rel=0.01)
    assert result.ratio == result.ratios[-1].ratio
    low, high = result.ratio_ci
    assert low < 1.2 < high
    assert high / low < 1.03
    assert [m.median_ms > 0 for m in result.measurements] == [True] * 3
    assert result.samples_ms[1] == result.measurements[1].samples_ms
    assert len(result.samples_ms[1]) > len(result.samples_ms[0]) > 100
    assert result.environment.device_name == "machine"
    assert str(result.target) == "machine:cpu"
    assert made.closed == made.loads > 3
    assert made.now < 25


def test_one_artifact_has_no_ratio(machine):
    machine()
    result = bench([ms(5)], "machine", max_seconds=5)
    assert result.ratios == ()
    assert result.measurements[0].median_ms == pytest.approx(5, rel=0.3)
    with pytest.raises(UsageError, match="needs two artifacts"):
        _ = result.ratio


def test_time_limit_holds_and_very_slow_models_still_get_four_sessions(machine):
    made = machine(noise=0.3)
    bench([ms(5), ms(5)], "machine", max_seconds=3, precision_goal=1e-4)
    assert made.now < 5
    made = machine()
    result = bench([ms(3000), ms(6000)], "machine", max_seconds=3)
    assert (result.ratios[0].rounds, result.ratios[0].sessions) == (4, 4)
    assert result.ratio == pytest.approx(2, rel=0.5)
    quick = bench([ms(3000), ms(6000)], "machine", max_seconds=3, min_rounds=1)
    assert quick.ratios[0].sessions == 4
    verdict = check_regression(ms(3000), ms(3000), "machine", max_seconds=3)
    assert verdict.ratio.sessions == 4


def test_noise_is_said_with_the_fix(machine, capsys):
    machine(noise=0.4)
    bench([ms(5), ms(5)], "machine", max_seconds=1)
    said = capsys.readouterr().err
    assert "runs of 5 vary by" in said
    assert "close other programs" in said
    assert "--max-seconds 2" in said
    bench([Artifact("", "onnx")], "machine", max_seconds=1)
    assert "runs of network 1 vary by" in capsys.readouterr().err


def test_an_interval_far_wider_than_wanted_is_said(machine, monkeypatch, capsys):
    machine(noise=0.4)
    bench([ms(5), ms(5)], "machine", max_seconds=1)
    said = capsys.readouterr().err
    assert "only after" in said
    assert "sessions differ; measure longer (--max-seconds 3)" in said
    monkeypatch.setattr(Sessions, "lost", 0.4)
    bench([ms(5), ms(5)], "machine", max_seconds=1)
    assert "other processes took 40% of the processor's time; stop them" in capsys.readouterr().err


def test_what_is_enough_ends_it(machine):
    machine(noise=0.4)
    result = bench([ms(5), ms(5)], "machine", max_seconds=60, enough=lambda s: s.count >= 6)
    assert result.ratios[0].sessions == 6


def test_a_loaded_machine_is_no_reason_for_a_verdict(machine, monkeypatch):
    """Others took half of the time: 8 % slower cannot be told from 5 %."""
    machine()
    monkeypatch.setattr(Sessions, "lost", 0.5)
    verdict = check_regression(ms(5), ms(5.4), "machine", max_seconds=5)
    assert verdict.outcome == "inconclusive"
    assert verdict.more_seconds == math.inf
    assert "other processes took 50% of the processor's time: close them" in verdict.reason


@pytest.mark.parametrize(("candidate", "outcome"), [(5, "pass"), (4, "pass"), (5.75, "fail")])
def test_check_is_right_every_time(machine, candidate, outcome):
    for seed in range(15):
        made = machine(seed=seed)
        verdict = check_regression(ms(5), ms(candidate), "machine", seed=seed)
        assert verdict.outcome == outcome
        assert verdict.threshold == 0.05
        assert verdict.ratio.confidence == 0.99
        assert made.now < 62
        assert ("below 1.05" if outcome == "pass" else "above 1.05") in verdict.reason


def test_repeated_looks_do_not_fail_what_is_exactly_at_the_threshold(machine):
    wrong = 0
    for seed in range(40):
        machine(seed=seed, bias=0.0)
        verdict = check_regression(
            ms(1), ms(1.05), "machine", confidence=0.9, max_seconds=8, seed=seed
        )
        wrong += verdict.outcome != "inconclusive"
    assert wrong <= 6


def test_too_noisy_to_tell_is_inconclusive_with_a_remedy(machine):
    machine(noise=0.5)
    verdict = check_regression(ms(5), ms(5.25), "machine", max_seconds=3)
    assert verdict.outcome == "inconclusive"
    assert "on both sides of 1.05" in verdict.reason
    assert "close other programs" in verdict.reason
    assert verdict.more_seconds > 20 * 3


def test_what_a_little_longer_would_tell_is_said(machine):
    machine(noise=0.05, seed=4)
    verdict = check_regression(ms(5), ms(5.12), "machine", max_seconds=1)
    assert verdict.outcome == "inconclusive"
    assert 0 < verdict.more_seconds <= 20
    longer = math.ceil(float(verdict.reason.partition("--max-seconds ")[2].rstrip(")")))
    assert "more would tell" in verdict.reason
    assert 1 < longer < 30


def test_recorded_ratio_is_compared_with(machine):
    machine(seed=2)
    assert check_ratio(ms(10), ms(5), 0.5, "machine").outcome == "pass"
    verdict = check_ratio(ms(10), ms(5.8), 0.5, "machine")
    assert verdict.outcome == "fail"
    assert verdict.ratio.ratio == pytest.approx(1.16, rel=0.03)
    assert "against the recorded ratio 0.500" in verdict.reason
    wide = check_ratio(ms(10), ms(5.8), 0.5, "machine", recorded_ci=(0.4, 0.6), max_seconds=3)
    assert wide.outcome == "inconclusive"
    with pytest.raises(UsageError, match="`recorded_ci` must enclose"):
        check_ratio(ms(10), ms(5), 0.5, "machine", recorded_ci=(0.6, 0.7))
    with pytest.raises(UsageError, match="`recorded_ratio` must be positive"):
        check_ratio(ms(10), ms(5), 0, "machine")


def test_same_bytes_are_still_measured(machine):
    made = machine()
    same = Artifact("5", "onnx", sha256="ab")
    verdict = check_regression(same, same, "machine")
    assert verdict.ratio.rounds >= 12
    assert made.order.count(5.0) > 100
    assert isinstance(verdict.ratio, PairedRatio)


@pytest.mark.parametrize("target", ["fake", "onnxruntime"])
def test_files_are_timed_by_path(tmp_path, target):
    small = conv_net(tmp_path / "small.onnx", 8)
    large = conv_net(tmp_path / "large.onnx", 64)
    result = bench([large, small], target, max_seconds=1.5, precision_goal=0.05)
    assert 0 < result.ratio < 1
    verdict = check_regression(small, large, target, max_seconds=5)
    assert verdict.outcome == "fail"


def test_bad_arguments_are_named(machine, tmp_path):
    machine()
    with pytest.raises(UsageError, match="`artifacts` must be a list"):
        bench([], "machine")
    with pytest.raises(UsageError, match="`artifacts` must be a list"):
        bench("model.onnx", "machine")
    with pytest.raises(UsageError, match="takes artifacts of format onnx, not module"):
        bench([Artifact("x", "module")], "machine")
    with pytest.raises(UsageError, match="`max_seconds`"):
        bench([ms(1)], "machine", max_seconds=0)
    with pytest.raises(UsageError, match="`threshold`"):
        check_regression(ms(1), ms(1), "machine", threshold=-0.1)
    for bad in (math.nan, math.inf):
        with pytest.raises(UsageError, match="`threshold`"):
            check_regression(ms(1), ms(1), "machine", threshold=bad)
    for call in (bench, lambda a, t, **k: check_regression(*a, t, **k)):
        with pytest.raises(UsageError, match="`max_seconds`"):
            call([ms(1), ms(1)], "machine", max_seconds=math.nan)
        with pytest.raises(UsageError, match="`seed` is -1; the least is 0"):
            call([ms(1), ms(1)], "machine", seed=-1)
    for bad in (0, 1):
        with pytest.raises(UsageError, match="`recorded_confidence` must lie between 0 and 1"):
            check_ratio(ms(1), ms(1), 1.0, "machine", recorded_confidence=bad)
    with pytest.raises(UsageError, match="`confidence`"):
        check_regression(ms(1), ms(1), "machine", confidence=99)
    with pytest.raises(RuntimeUnavailableError, match="runs on cpu, not cuda"):
        bench([ms(1)], "machine:cuda")
