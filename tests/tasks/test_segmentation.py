"""Segmentation: masks, pixels that do not count, maps that are smaller, second heads."""

import pytest
import torch
from torch.nn import functional as F

from prunekit.support.errors import DataError, ModelError
from prunekit.tasks import Segmentation
from prunekit.tasks.segmentation import AUXILIARY, VOID

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 3, 6, 8, generator=GENERATOR)
MASKS = torch.randint(3, (2, 6, 8), generator=GENERATOR)


def test_metrics_by_hand():
    masks = torch.tensor([[[0, 0, 1, 1, VOID]]])
    answer = torch.tensor([[[0, 1, 1, 1, 0]]])
    logits = F.one_hot(answer, 3).permute(0, 3, 1, 2).float()
    scorer = Segmentation(3).scorer()
    scorer.update(logits, masks)
    scores = scorer.compute()
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 is nowhere
    assert scores["pixel_accuracy"] == pytest.approx(3 / 4)


def test_batches_add_up():
    whole, parts = (Segmentation(3).scorer() for _ in range(2))
    whole.update(LOGITS, MASKS)
    for i in range(2):
        parts.update(LOGITS[i : i + 1], MASKS[i : i + 1])
    assert whole.compute() == parts.compute()


@pytest.mark.parametrize("weights", [None, [1.0, 2, 3]])
def test_the_loss_is_torch_s_and_leaves_out_what_does_not_count(weights):
    masks = MASKS.clone()
    masks[:, :2] = VOID
    given = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(LOGITS, masks, given, ignore_index=VOID)
    loss = Segmentation(3, class_weights=weights).criterion(LOGITS, masks)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_a_picture_without_a_pixel_that_counts_costs_nothing():
    loss = Segmentation(3).criterion(LOGITS, torch.full_like(MASKS, VOID))
    assert float(loss) == 0.0


def test_smaller_maps_are_enlarged_and_second_heads_trained():
    task = Segmentation(3)
    small = F.interpolate(LOGITS, (3, 4))
    first, second = (task.criterion(m, MASKS) for m in (LOGITS, small))
    both = task.criterion({"out": LOGITS, "aux": small}, MASKS)
    assert torch.allclose(both, first + AUXILIARY * second)
    assert task.answer({"out": small}, (6, 8)).shape == MASKS.shape


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.full((4, 4), 3), "has the class 3 in a mask; 0 to 2 and 255"),
        (torch.zeros(4, 4), "a mask of torch.float32 and shape 4x4"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), "shape 1x4x4; whole numbers of the shape HxW"),
    ],
)
def test_masks_that_are_none(mask, message):
    with pytest.raises(DataError, match=message):
        Segmentation(3).check_target(mask, "mine (train)")


def test_maps_for_every_class():
    with pytest.raises(ModelError, match=r"output is 2x3x6x8; \(batch, 4 classes, height, width\)"):
        Segmentation(4).check_outputs(LOGITS, MASKS)
    with pytest.raises(ModelError, match="the model's output is 2x3"):
        Segmentation(3).check_outputs(LOGITS[..., 0, 0], MASKS)


def test_the_distance_to_a_teacher():
    task = Segmentation(3)
    assert float(task.distance(LOGITS, LOGITS, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(task.distance(LOGITS, LOGITS.roll(1, 1), 2.0)) > 0.1
    with pytest.raises(ModelError, match="the teacher's output is 2x3x6x7"):
        task.distance(LOGITS, LOGITS[..., :7], 2.0)
