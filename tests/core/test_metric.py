"""Metrics: how values are told, and which of two is better."""

from prunekit.core.metric import Metric


def test_shares_are_told_in_percent_and_points():
    metric = Metric("accuracy", "top-1")
    assert metric.text(0.5) == "50.00%"
    assert metric.apart(0.5, 0.475) == "-2.50 points"
    assert metric.better(0.5, 0.6) == 0.6


def test_others_have_their_unit():
    metric = Metric("error", "error", "mm", higher_is_better=False)
    assert metric.text(1.5) == "1.5000 mm"
    assert metric.apart(1.5, 2.0) == "+0.5000 mm"
    assert Metric("r2", "R2", "").text(0.25) == "0.2500"
    assert metric.better(0.5, 0.6) == 0.5
