"""Detection: targets, the network's own losses, COCO's metrics, a teacher."""

import pytest
import torch

from prunekit.support.errors import DataError, ModelError
from prunekit.tasks import Detection

BOXES = torch.tensor([[10.0, 10, 50, 50], [60, 20, 90, 80]])
LABELS = torch.tensor([0, 1])
TARGET = {"boxes": BOXES, "labels": LABELS}


def outputs(boxes, labels, scores, classes=2):
    """One image's, with a place for every box."""
    values = torch.zeros(1, len(boxes), classes)
    values[0, torch.arange(len(boxes)), labels] = torch.as_tensor(scores)
    return {"boxes": boxes[None], "scores": values}


def scores_of(*images):
    scorer = Detection(2).scorer()
    for seen, target in images:
        scorer.update(seen, [target])
    return scorer.compute()


def test_what_is_seen_exactly_is_worth_one():
    assert scores_of((outputs(BOXES, LABELS, [0.9, 0.8]), TARGET)) == {
        "map": 1.0,
        "map50": 1.0,
        "map_small": 0.0,  # there is none
    }


def test_half_of_the_objects_and_rough_boxes():
    one = scores_of((outputs(BOXES[:1], LABELS[:1], [0.9]), TARGET))
    assert one["map"] == pytest.approx(0.5)
    rough = BOXES + torch.tensor([0.0, 0, 9, 0])  # IoU 0.82 and 0.77
    seen = scores_of((outputs(rough, LABELS, [0.9, 0.8]), TARGET))
    assert seen["map50"] == 1.0
    # of the ten thresholds 0.5, 0.55, ... the first has seven, the second six
    assert seen["map"] == pytest.approx((0.7 + 0.6) / 2, abs=1e-6)


def test_the_wrong_class_is_worth_nothing():
    assert scores_of((outputs(BOXES, 1 - LABELS, [0.9, 0.8]), TARGET))["map"] == 0.0


def test_batches_are_images_and_lists():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    images, targets = Detection(2).collate(
        [(torch.zeros(3, 8, 8), TARGET)] * 2 + [(torch.zeros(3, 8, 8), empty)]
    )
    assert images.shape == (3, 3, 8, 8)
    assert [len(target["labels"]) for target in targets] == [2, 2, 0]
    assert {target["labels"].dtype for target in targets} == {torch.int64}
    with pytest.raises(DataError, match="different shapes: 3x8x8, 3x9x9; resize"):
        Detection(2).collate([(torch.zeros(3, 8, 8), TARGET), (torch.zeros(3, 9, 9), TARGET)])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "gives targets of int; a dictionary with `boxes`"),
        ({"boxes": BOXES, "labels": LABELS[:1]}, "gives boxes of 2x4 and 1 labels"),
        ({"boxes": BOXES * float("nan"), "labels": LABELS}, "a box that is not a number"),
        ({"boxes": BOXES.flip(1), "labels": LABELS}, "which has no area; a box is left, top"),
        ({"boxes": BOXES, "labels": LABELS + 1}, "has the label 2; 0 to 1 are known"),
    ],
)
def test_targets_that_are_none(target, message):
    with pytest.raises(DataError, match=message):
        Detection(2).check_target(target, "mine (train)")


def test_an_image_without_objects_is_a_sample():
    Detection(2).check_target({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}, "mine")


def test_networks_that_are_no_detectors_are_named():
    task = Detection(2)
    with pytest.raises(ModelError, match="the model's output is 1x3; for detection it is `boxes`"):
        task.check_outputs(torch.zeros(1, 3), None)
    with pytest.raises(ModelError, match="scores are 1x2x2; the data has 3 classes, so that 1x2x3"):
        Detection(3).check_outputs(outputs(BOXES, LABELS, [0.9, 0.8]), None)
    with pytest.raises(ModelError, match="is called with images and targets and gives losses"):
        task.loss(lambda images: images, torch.zeros(1, 3, 8, 8), [TARGET])


def test_losses_are_added_up():
    seen = outputs(BOXES, LABELS, [0.9, 0.8])
    losses = {"boxes": torch.tensor(0.5), "classes": torch.tensor(0.25)}
    loss, kept = Detection(2).loss(lambda *_: (losses, seen), torch.zeros(1, 3, 8, 8), [TARGET])
    assert float(loss) == 0.75
    assert kept is seen


def test_the_distance_to_a_teacher_counts_boxes_where_it_sees_something():
    task = Detection(2)
    taught = outputs(BOXES, LABELS, [1.0, 0.0])
    apart = [
        outputs(BOXES + move, LABELS, [1.0, 0.0])
        for move in (
            torch.zeros(2, 4),
            torch.tensor([[0.0] * 4, [20.0] * 4]),
            torch.tensor([[20.0] * 4, [0.0] * 4]),
        )
    ]
    same, unseen, seen = (float(task.distance(mine, taught, 1.0)) for mine in apart)
    assert same == pytest.approx(unseen)
    assert seen > same
