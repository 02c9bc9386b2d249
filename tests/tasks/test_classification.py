"""Classification: labels, losses, metrics, distance to a teacher."""

import pytest
import torch
from torch.nn import functional as F

from prunekit.support.errors import DataError, ModelError, UsageError
from prunekit.tasks import Classification

LOGITS = torch.tensor([[4.0, 1, 0, 0, 0, 0], [0, 3, 2, 0, 0, 0], [0, 5, 1, 0, 0, 2]])
LABELS = torch.tensor([0, 2, 5])


def test_metrics_of_three_answers():
    scorer = Classification(6).scorer()
    scorer.update(LOGITS[:2], LABELS[:2])
    scorer.update(LOGITS[2:], LABELS[2:])
    scores = scorer.compute()
    assert list(scores) == ["accuracy", "top5", "f1", "calibration_error"]
    assert scores["accuracy"] == 1 / 3
    assert scores["top5"] == pytest.approx(1.0)
    confident = LOGITS.softmax(1).amax(1)
    right = torch.tensor([1.0, 0.0, 0.0])
    bins = (confident * 15).long()
    expected = sum(
        abs(float((confident - right)[bins == b].mean())) * float((bins == b).float().mean())
        for b in bins.unique()
    )
    assert scores["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_a_brief_scorer_knows_the_metric_that_decides():
    task = Classification(6, metric="f1")
    assert task.primary.key == "f1"
    scorer = task.scorer(brief=True)
    scorer.update(LOGITS, LABELS)
    assert scorer.compute()["f1"] == pytest.approx((1 + 0 + 0 + 0) / 4, abs=1e-6)
    brief = Classification(6).scorer(brief=True)
    brief.update(LOGITS, LABELS)
    assert brief.compute() == {"accuracy": 1 / 3}


def test_few_classes_have_no_top_5():
    assert [m.key for m in Classification(3).metrics] == ["accuracy", "f1", "calibration_error"]


def test_weights_and_smoothing_are_those_of_torch():
    weights = [1.0, 2, 3, 4, 5, 6]
    task = Classification(6, class_weights=weights).smoothed(0.1)
    expected = F.cross_entropy(LOGITS, LABELS, torch.tensor(weights), label_smoothing=0.1)
    assert torch.equal(task.criterion(LOGITS, LABELS), expected)
    assert task.facts() == {"class_weights": weights}


def test_the_distance_to_a_teacher_grows_with_the_temperature_squared():
    task = Classification(6)
    assert float(task.distance(LOGITS, LOGITS, 4.0)) == pytest.approx(0.0, abs=1e-6)
    soft = F.softmax(LOGITS.roll(1, 0) / 2, 1)
    expected = 4 * F.kl_div(F.log_softmax(LOGITS / 2, 1), soft, reduction="batchmean")
    assert float(task.distance(LOGITS, LOGITS.roll(1, 0), 2.0)) == pytest.approx(float(expected))
    with pytest.raises(ModelError, match="the teacher has 5 outputs and the model 6"):
        task.distance(LOGITS, LOGITS[:, :5], 1.0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (6, "gives the label 6; whole numbers from 0 to 5 are needed"),
        (-1, "gives the label -1; whole numbers from 0 to 5"),
        (0.5, "gives the label 0.5; whole numbers from 0 to 5"),
        ("cat", "gives the label 'cat'; whole numbers from 0 are needed"),
        (torch.zeros(2, 3), "gives the label of shape 2x3; whole numbers"),
    ],
)
def test_labels_that_are_none(label, message):
    with pytest.raises(DataError, match=message):
        Classification(6).check_target(label, "mine (val)")


def test_outputs_that_do_not_fit():
    with pytest.raises(ModelError, match="6 outputs but the data has 7 classes"):
        Classification(7).check_outputs(LOGITS, LABELS)
    with pytest.raises(ModelError, match=r"output is \(3, 6, 1\); \(batch, classes\) logits"):
        Classification(6).check_outputs(LOGITS[..., None], LABELS)


@pytest.mark.parametrize("weights", [[1.0] * 5, [1.0] * 5 + [0.0]])
def test_weights_are_one_positive_number_per_class(weights):
    with pytest.raises(UsageError, match="one above 0 for each of the 6 classes is needed"):
        Classification(6, class_weights=weights)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(UsageError, match="`metric` 'miou' is none of classification; metrics: acc"):
        Classification(3, metric="miou")
