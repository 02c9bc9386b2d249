"""Multi-label: zeros and ones, binary cross entropy, average precision."""

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from prunekit.support.errors import DataError, ModelError
from prunekit.tasks import MultiLabel


def answers(count=40, classes=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    targets = (torch.rand(count, classes, generator=generator) < 0.4).float()
    return logits + targets, targets


def test_metrics_are_those_of_scikit_learn():
    logits, targets = answers()
    scorer = MultiLabel(3).scorer()
    scorer.update(logits[:25], targets[:25])
    scorer.update(logits[25:], targets[25:])
    scores = scorer.compute()
    expected = average_precision_score(targets.numpy(), logits.sigmoid().numpy(), average="macro")
    assert scores["map"] == pytest.approx(expected, abs=1e-5)
    expected = f1_score(targets.numpy(), (logits > 0).numpy(), average="macro")
    assert scores["f1"] == pytest.approx(expected, abs=1e-5)


def test_the_loss_weighs_what_is_there():
    logits, targets = answers()
    weights = torch.tensor([1.0, 2, 3])
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    assert torch.equal(MultiLabel(3, class_weights=[1, 2, 3]).criterion(logits, targets), expected)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0.0, 1.0]), "labels of the shape 2; 3 zeros or ones are needed"),
        (torch.tensor([0.0, 0.5, 1.0]), "neither 0 nor 1"),
        (1.0, "3 zeros or ones are needed"),
    ],
)
def test_targets_that_are_none(target, message):
    with pytest.raises(DataError, match=message):
        MultiLabel(3).check_target(target, "mine (train)")


def test_outputs_are_one_per_class():
    logits, targets = answers()
    with pytest.raises(ModelError, match="3 outputs but the data has 4 classes"):
        MultiLabel(4).check_outputs(logits, targets)
