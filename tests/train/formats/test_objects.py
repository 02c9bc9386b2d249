"""Boxes: one scene as COCO, VOC and YOLO gives one sample; augmentation keeps boxes true."""

import pytest
import torch

from prunekit.support.errors import DataError
from prunekit.train import load_data
from prunekit.train.formats.objects import Objects
from support.scenes import CLASSES, SIZE, parts, write_coco, write_voc, write_yolo

SHAPE = (3, SIZE[1], SIZE[0])
WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_scenes_give_the_same_samples(tmp_path, kind):
    data = load_data(f"{kind}:{WRITERS[kind](tmp_path / 'set')}", SHAPE)
    assert (data.task.name, data.num_classes) == ("detection", 2)
    assert data.task.class_names == CLASSES
    assert (len(data.train), len(data.val)) == (6, 3)
    for scene, (image, target) in zip(parts()["val"], (data.val[i] for i in range(3)), strict=True):
        assert image.shape == SHAPE
        assert target["labels"].tolist() == scene.labels
        expected = torch.tensor(scene.boxes, dtype=torch.float32).reshape(-1, 4)
        assert torch.allclose(target["boxes"], expected, atol=1e-3)
        assert type(target["boxes"]) is torch.Tensor


def test_boxes_follow_the_picture(tmp_path):
    data = load_data(f"coco:{write_coco(tmp_path)}", (3, 64, 80))
    (_, target), scene = data.val[0], parts()["val"][0]
    assert torch.allclose(target["boxes"], 2 * torch.tensor(scene.boxes).float(), atol=1e-3)


def test_augmented_boxes_are_where_the_objects_are(tmp_path):
    data = load_data(f"coco:{write_coco(tmp_path)}", SHAPE)
    seen = 0
    torch.manual_seed(0)
    for _ in range(8):
        for index in range(len(data.train)):
            image, target = data.train[index]
            data.task.check_target(target, "train")
            brightness = image.mean(0)
            outside = torch.ones_like(brightness, dtype=torch.bool)
            for box in target["boxes"].round().int().tolist():
                left, top, right, bottom = box
                outside[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
                seen += 1
            if len(target["boxes"]) == 2:
                assert float(brightness[outside].max()) < 0.2  # squares and bars are brighter
    assert seen > 50


def test_scenes_become_batches(tmp_path):
    data = load_data(f"coco:{write_coco(tmp_path)}", SHAPE)
    images, targets = next(iter(data.train_batches(4, 0)))
    assert images.shape == (4, *SHAPE)
    assert {key for target in targets for key in target} == {"boxes", "labels", "iscrowd"}


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 10, 20), r"here: the box \[10, 10, 10, 20\] has no area; repair or remove it"),
        ((10, 10, 60, 20), r"is outside of its image, a.png of 40 x 32; repair or remove it"),
        ((-5, 0, 10, 10), "is outside of its image"),
        ((0, 0, float("nan"), 10), "is not of numbers"),
    ],
)
def test_boxes_that_cannot_be(tmp_path, box, message):
    objects = Objects(tmp_path / "a.png", SIZE)
    with pytest.raises(DataError, match=message):
        objects.add(box, 0, "here")


def test_a_box_a_pixel_outside_is_cut():
    from pathlib import Path

    objects = Objects(Path("a.png"), SIZE)
    objects.add((-0.5, 3, 40.9, 32), 0, "here")
    assert objects.boxes == [(0.0, 3, 40, 32)]
