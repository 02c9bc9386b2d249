"""Regression: losses, mean absolute error, R2."""

import pytest
import torch

from prunekit.support.errors import DataError, ModelError, UsageError
from prunekit.tasks import Regression


def test_metrics_of_four_numbers():
    outputs, targets = torch.tensor([[1.0], [2], [3], [6]]), torch.tensor([1.0, 2, 4, 5])
    scorer = Regression().scorer()
    scorer.update(outputs[:3], targets[:3])
    scorer.update(outputs[3:], targets[3:])
    scores = scorer.compute()
    assert scores["mae"] == pytest.approx(0.5)
    assert scores["r2"] == pytest.approx(1 - 2 / 10)


def test_the_lower_error_is_better():
    metric = Regression(unit="mm").primary
    assert metric.better(0.2, 0.5) == 0.2
    assert metric.text(0.25) == "0.2500 mm"
    assert metric.apart(0.5, 0.25) == "-0.2500 mm"


@pytest.mark.parametrize(
    ("loss", "expected"), [(None, 2.5), ("squared", 2.5), ("absolute", 1.5), ("huber", 1.0)]
)
def test_losses(loss, expected):
    outputs, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert float(Regression(2, loss=loss).criterion(outputs, targets)) == expected


def test_one_value_may_come_without_its_axis():
    task = Regression()
    flat = torch.tensor([1.0, 2.0])
    assert float(task.criterion(flat, flat)) == 0.0
    assert float(task.distance(flat, flat + 2, 1.0)) == 4.0


def test_what_cannot_be():
    with pytest.raises(UsageError, match="`loss` must be one of squared, absolute, huber"):
        Regression(loss="hinge")
    with pytest.raises(DataError, match="gives 3 values; the task regression has 2"):
        Regression(2).check_target(torch.zeros(3), "mine (val)")
    with pytest.raises(DataError, match="gives the value nan"):
        Regression(2).check_target(torch.tensor([1.0, float("nan")]), "mine (val)")
    with pytest.raises(ModelError, match="the model's output is 4x3; 2 numbers for each input"):
        Regression(2).check_outputs(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(UsageError, match="`label_smoothing` is for classification, not for regr"):
        Regression().smoothed(0.1)
