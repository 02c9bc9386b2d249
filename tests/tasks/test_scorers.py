"""Metrics of the library as scorers, and a library that is missing."""

import sys

import pytest
import torch

from prunekit.core.metric import Metric
from prunekit.support.errors import UsageError
from prunekit.tasks import Library
from prunekit.tasks.scorers import chosen_first, library


def test_metrics_count_batch_by_batch():
    scorer = Library({"mae": library("regression").MeanAbsoluteError()})
    scorer.update(torch.tensor([1.0]), torch.tensor([2.0]))
    scorer.update(torch.tensor([1.0]), torch.tensor([4.0]))
    assert scorer.compute() == {"mae": 2.0}


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.regression", None)
    with pytest.raises(UsageError, match=r"need torchmetrics .*; pip install torchmetrics"):
        library("regression")


def test_the_chosen_metric_comes_first():
    metrics = (Metric("a", "A"), Metric("b", "B"))
    assert [m.key for m in chosen_first(metrics, "b", "mine")] == ["b", "a"]
    assert chosen_first(metrics, None, "mine") == metrics
